//! The sentences of English texts: the decision of Punkt (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary
//! Detection"), as NLTK 3.10 makes it with its parameters for English.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use olmoe_data::white_space::{is_space, stripped};

/// Where a word was seen in the training text, as bits: at the beginning of a sentence or within, in upper or lower case.
mod seen {
    pub(super) const MIDDLE_UPPER: u8 = 1 << 2;
    pub(super) const BEGIN_LOWER: u8 = 1 << 4;
    pub(super) const UPPER: u8 = 1 << 1 | 1 << 2 | 1 << 3;
    pub(super) const LOWER: u8 = 1 << 4 | 1 << 5 | 1 << 6;
}

struct Parameters {
    abbreviations: HashSet<&'static str>,
    starters: HashSet<&'static str>,
    collocations: HashSet<(&'static str, &'static str)>,
    orthography: HashMap<&'static str, u8>,
}

static ENGLISH: LazyLock<Parameters> = LazyLock::new(|| {
    let mut all = Parameters {
        abbreviations: HashSet::new(),
        starters: HashSet::new(),
        collocations: HashSet::new(),
        orthography: HashMap::new(),
    };
    for line in include_str!("punkt_english.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split('\t');
        match words.next() {
            Some("abbreviations") => all.abbreviations.extend(words),
            Some("starters") => all.starters.extend(words),
            Some("collocation") => all.collocations.extend(words.next().zip(words.next())),
            flags => {
                let flags =
                    flags.and_then(|flags| flags.parse().ok()).expect("the file of this project has flags here");
                all.orthography.extend(words.map(|word| (word, flags)));
            }
        }
    }
    all
});

/// The sentences of the text, without the white space between them; closing quotation marks and parentheses belong to the
/// sentence before them.
pub fn sentences(text: &str) -> Vec<&str> {
    let (letters, mut starts): (Vec<char>, Vec<usize>) = text.char_indices().map(|(at, letter)| (letter, at)).unzip();
    starts.push(text.len());
    let slice = |(start, end): (usize, usize)| &text[starts[start]..starts[end.max(start)]];
    aligned(&letters, &pieces(&letters)).into_iter().map(slice).filter(|sentence| !sentence.is_empty()).collect()
}

/// Characters that cannot stand within words, the period excepted.
fn is_no_word(letter: char) -> bool {
    ")\";}]*:@'({[‘’“”«»?!".contains(letter)
}

fn begins_word(letter: char) -> bool {
    !is_space(letter) && !"(\"`{[:;&#*@)}]-,".contains(letter)
}

/// A place where a sentence may end: after the character at `at`.
struct Candidate {
    at: usize,
    /// Where the word before it begins.
    word: usize,
    /// The end of what was looked at behind it.
    after: usize,
    /// Where the next word begins, if white space is between.
    next: Option<usize>,
}

/// The places that a sentence may end at, of those in one word the last.
fn candidates(letters: &[char]) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = Vec::new();
    let mut last: Option<Candidate> = None;
    let mut before = (0, 0);
    for (at, letter) in letters.iter().enumerate() {
        if !['.', '?', '!'].contains(letter) {
            continue;
        }
        let Some(behind) = letters.get(at + 1).copied() else { continue };
        let (after, next) = if is_no_word(behind) {
            (at + 2, None)
        } else {
            let Some(skipped) = letters[at + 1..].iter().position(|letter| !is_space(*letter)) else { continue };
            if skipped == 0 {
                continue;
            }
            let next = at + 1 + skipped;
            let end = letters[next..]
                .iter()
                .position(|letter| is_space(*letter))
                .map_or(letters.len(), |length| next + length);
            (end, Some(next))
        };
        let space = letters[before.1..at].iter().rposition(|letter| matches!(letter, ' ' | '\t'..='\r'));
        let word = match space {
            // NLTK does not tell white space at 0 from none.
            None | Some(0) => before.0,
            Some(space) => before.1 + space + 1,
        };
        if let Some(last) = last.take().filter(|_| before.1 <= word) {
            all.push(last);
        }
        last = Some(Candidate { at, word, after, next });
        before = (word, at);
    }
    all.extend(last);
    all
}

/// The beginnings and ends of the pieces between sentence breaks.
fn pieces(letters: &[char]) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut begin = 0;
    for candidate in candidates(letters) {
        if is_broken(&letters[candidate.word..candidate.after]) {
            all.push((begin, candidate.at + 1));
            begin = candidate.next.unwrap_or(candidate.at + 1);
        }
    }
    let end = letters.iter().rposition(|letter| !is_space(*letter)).map_or(0, |last| last + 1);
    all.push((begin, end));
    all
}

/// The pieces with closing characters at their beginnings given to the sentences before.
fn aligned(letters: &[char], pieces: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut moved = 0;
    for (index, (start, end)) in pieces.iter().enumerate() {
        let start = start + moved;
        let Some(next) = pieces.get(index + 1) else {
            all.push((start, *end));
            break;
        };
        match closing(&letters[next.0..next.1.max(next.0)]) {
            Some((kept, skipped)) => {
                all.push((start, next.0 + kept));
                moved = skipped;
            }
            None => {
                moved = 0;
                all.push((start, *end));
            }
        }
    }
    all
}

/// How many closing characters begin a piece, and how far the white space after them goes.
fn closing(letters: &[char]) -> Option<(usize, usize)> {
    let count = letters.iter().take_while(|letter| "\"')]}‘’“”«»".contains(**letter)).count();
    let ends_at = |count: usize| {
        let rest = &letters[count..];
        let spaces = rest.iter().take_while(|letter| is_space(**letter)).count();
        (spaces > 0 || rest.is_empty() || rest.starts_with(&['-', '-'])).then_some((count, count + spaces))
    };
    if count == 0 { None } else { ends_at(count) }
}

#[derive(Default)]
struct Token {
    text: String,
    /// In lower case, and one for all numbers.
    kind: String,
    ends: bool,
    abbreviates: bool,
}

impl Token {
    fn new(text: &str) -> Token {
        let lower = text.to_lowercase();
        let kind = if is_number(&lower) { "##number##".to_owned() } else { lower };
        let mut token = Token { text: text.to_owned(), kind, ends: false, abbreviates: false };
        if ["?", "!", "."].contains(&text) {
            token.ends = true;
        } else if !token.is_ellipsis() && text.ends_with('.') {
            let word = text[..text.len() - 1].to_lowercase();
            let last = word.rsplit('-').next().unwrap_or(&word);
            token.abbreviates = ENGLISH.abbreviations.contains(&*word) || ENGLISH.abbreviations.contains(last);
            token.ends = !token.abbreviates;
        }
        token
    }

    /// NLTK looks for it at the beginning only: two periods or more and nothing else.
    fn is_ellipsis(&self) -> bool {
        self.text.len() >= 2 && self.text.bytes().all(|byte| byte == b'.')
    }

    fn is_initial(&self) -> bool {
        let mut letters = self.text.chars();
        letters.next().is_some_and(char::is_alphabetic) && letters.as_str() == "."
    }

    fn kind_without_period(&self) -> &str {
        match self.kind.strip_suffix('.') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &self.kind,
        }
    }

    fn kind_without_end(&self) -> &str {
        if self.ends { self.kind_without_period() } else { &self.kind }
    }

    fn is_upper(&self) -> bool {
        self.text.chars().next().is_some_and(char::is_uppercase)
    }

    fn is_lower(&self) -> bool {
        self.text.chars().next().is_some_and(char::is_lowercase)
    }

    fn seen(&self) -> u8 {
        ENGLISH.orthography.get(self.kind_without_end()).copied().unwrap_or(0)
    }

    /// Whether the way it is written tells that it begins a sentence.
    fn begins_sentence(&self) -> Option<bool> {
        if [";", ":", ",", ".", "!", "?"].contains(&&*self.text) {
            return Some(false);
        }
        let seen = self.seen();
        if self.is_upper() && seen & seen::LOWER != 0 && seen & seen::MIDDLE_UPPER == 0 {
            return Some(true);
        }
        if self.is_lower() && (seen & seen::UPPER != 0 || seen & seen::BEGIN_LOWER == 0) {
            return Some(false);
        }
        None
    }

    /// The decision with the token after it.
    fn decide(&mut self, next: &Token) {
        if !self.text.ends_with('.') {
            return;
        }
        let (kind, next_kind) = (self.kind_without_period(), next.kind_without_end());
        let initial = self.is_initial();
        if ENGLISH.collocations.contains(&(kind, next_kind)) {
            self.ends = false;
            return;
        }
        let is_number = kind == "##number##";
        if (self.abbreviates || self.is_ellipsis()) && !initial {
            let starts =
                next.begins_sentence() == Some(true) || next.is_upper() && ENGLISH.starters.contains(next_kind);
            if starts {
                self.ends = true;
                return;
            }
        }
        if initial || is_number {
            let named = initial && next.is_upper() && next.seen() & seen::LOWER == 0;
            match next.begins_sentence() {
                Some(false) => self.ends = false,
                None if named => self.ends = false,
                _ => {}
            }
        }
    }
}

/// `-?[.,]?\d[\d,.-]*\.?` and nothing else.
fn is_number(text: &str) -> bool {
    let rest = text.strip_prefix('-').unwrap_or(text);
    let rest = rest.strip_prefix(['.', ',']).unwrap_or(rest);
    let is_digit = |letter: char| letter.is_ascii_digit();
    rest.chars().next().is_some_and(is_digit) && rest.chars().all(|letter| is_digit(letter) || ",.-".contains(letter))
}

/// Whether a sentence ends within the text, and not at its last token.
fn is_broken(letters: &[char]) -> bool {
    let mut tokens: Vec<Token> = Vec::new();
    for line in letters.split(|letter| *letter == '\n') {
        let text: String = line.iter().collect();
        if !stripped(&text).is_empty() {
            tokens.extend(tokenized(line).into_iter().map(|token| Token::new(&token)));
        }
    }
    for at in 1..tokens.len() {
        let (before, after) = tokens.split_at_mut(at);
        before[at - 1].decide(&after[0]);
        if before[at - 1].ends {
            return true;
        }
    }
    false
}

/// The length of dashes or periods that stand as one token at the beginning.
fn dashes_or_periods(letters: &[char]) -> Option<usize> {
    let run = |letter: char| letters.iter().take_while(|other| **other == letter).count();
    for letter in ['-', '.'] {
        if run(letter) >= 2 {
            return Some(run(letter));
        }
    }
    let spaced = letters.chunks_exact(2).take_while(|pair| pair[0] == '.' && is_space(pair[1])).count();
    // The last period may be the one of the last pair.
    (1..=spaced).rev().find(|pairs| *pairs >= 2 && letters.get(2 * pairs) == Some(&'.')).map(|pairs| 2 * pairs + 1)
}

/// Words and punctuation; the period stays with its word.
fn tokenized(line: &[char]) -> Vec<String> {
    let stops = |at: usize| {
        line.get(at).is_none_or(|letter| is_space(*letter) || is_no_word(*letter))
            || dashes_or_periods(&line[at..]).is_some()
    };
    let mut all = Vec::new();
    let mut at = 0;
    while at < line.len() {
        if is_space(line[at]) {
            at += 1;
            continue;
        }
        let end = if let Some(length) = dashes_or_periods(&line[at..]) {
            at + length
        } else if begins_word(line[at]) {
            (at + 1..line.len()).find(|end| stops(*end) || line[*end] == ',' && stops(end + 1)).unwrap_or(line.len())
        } else {
            at + 1
        };
        all.push(line[at..end].iter().collect());
        at = end;
    }
    all
}
