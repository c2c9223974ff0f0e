//! What is learned of the first rows, token by token.

use std::io::{IsTerminal, stdout};

use olmoe_data::Tokenizer;
use olmoe_data::instruct::{Encoded, Example, preview};

use crate::output::print;

/// Colours of a terminal: what is learned, and what is not.
const LEARNED: &str = "\x1b[32m";
const CONTEXT: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Shows rows: in colours on a terminal, as a table of id, token, label and weight elsewhere.
pub(super) fn show(rows: &[Encoded], tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let colours = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    for (at, row) in rows.iter().enumerate() {
        let parts: Vec<(String, &Example)> = match row {
            Encoded::Example(example) => vec![(String::new(), example)],
            Encoded::Pair(pair) => {
                let chosen = format!(", chosen; {} tokens of prompt in common", pair.prompt);
                vec![(chosen, &pair.chosen), (", rejected".to_owned(), &pair.rejected)]
            }
            Encoded::Labelled(labelled) => {
                let judgement = if labelled.desirable { ", desirable" } else { ", undesirable" };
                vec![(judgement.to_owned(), &labelled.example)]
            }
        };
        for (which, example) in parts {
            let (tokens, learned) = (example.ids.len(), example.num_targets());
            println!("row {}{which}: {tokens} tokens, {learned} learned", at + 1);
            print(&if colours { coloured(example, tokenizer) } else { table(example, tokenizer) })?;
        }
    }
    Ok(())
}

fn coloured(example: &Example, tokenizer: &Tokenizer) -> String {
    let mut text = String::new();
    let mut colour = "";
    for row in preview(example, tokenizer) {
        let own = if row.target { LEARNED } else { CONTEXT };
        if own != colour {
            text.push_str(PLAIN);
            text.push_str(own);
            colour = own;
        }
        // Control characters stay what they look like, but for line breaks.
        text.extend(row.text.chars().flat_map(|letter| match letter {
            '\n' => "⏎\n".chars().collect::<Vec<_>>(),
            letter if letter.is_control() => letter.escape_default().collect(),
            letter => vec![letter],
        }));
        if row.target && row.weight != 1.0 {
            text.push_str(&format!("({})", row.weight));
        }
    }
    text.push_str(PLAIN);
    text.push('\n');
    text
}

fn table(example: &Example, tokenizer: &Tokenizer) -> String {
    let mut text = format!("{:>6}  {:>6}  {:>6}  token\n", "id", "label", "weight");
    for row in preview(example, tokenizer) {
        let label = if row.target { row.id.to_string() } else { "-100".to_owned() };
        text.push_str(&format!("{:>6}  {label:>6}  {:>6}  {:?}\n", row.id, row.weight, row.text));
    }
    text
}

#[cfg(test)]
mod tests {
    use olmoe_data::Vocabulary;

    use super::*;

    #[test]
    fn what_is_learned_can_be_told_from_what_is_not() {
        let tokenizer = Tokenizer::from_vocabulary(&Vocabulary::bytes()).unwrap();
        let example = Example { ids: vec![97, 10, 98, 7], weights: vec![0.0, 0.0, 1.0, 0.5] };
        let text = table(&example, &tokenizer);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["id", "label", "weight", "token"]);
        assert_eq!(rows[1], ["97", "-100", "0", "\"a\""]);
        assert_eq!(rows[2], ["10", "-100", "0", "\"\\n\""]);
        assert_eq!(rows[3], ["98", "98", "1", "\"b\""]);
        assert_eq!(rows[4], ["7", "7", "0.5", "\"\\u{7}\""]);
        let text = coloured(&example, &tokenizer);
        assert_eq!(text, "\x1b[0m\x1b[2ma⏎\n\x1b[0m\x1b[32mb\\u{7}(0.5)\x1b[0m\n");
    }
}
