//! Which experts spoke in an answer.

use std::fmt::Write;

use olmoe_engine::Token;
use olmoe_model::config::ModelConfig;

/// Experts that are named for each layer.
const SHOWN: usize = 4;

/// How often each expert of each mixture was chosen.
pub(super) struct Experts {
    /// A mixture's number among the layers, and by expert.
    counts: Vec<(usize, Vec<u64>)>,
    experts: usize,
    tokens: u64,
}

impl Experts {
    /// For a model.
    pub(super) fn new(config: &ModelConfig) -> Experts {
        let experts = config.moe().map_or(0, |moe| moe.num_experts);
        let counts = config.mixture_layers().map(|layer| (layer, vec![0; experts])).collect();
        Experts { counts, experts, tokens: 0 }
    }

    /// Counts those of a token.
    pub(super) fn add(&mut self, token: &Token) {
        self.tokens += 1;
        for ((_, layer), chosen) in self.counts.iter_mut().zip(&token.experts) {
            for expert in chosen {
                if let Some(count) = layer.get_mut(*expert as usize) {
                    *count += 1;
                }
            }
        }
    }

    /// A line a mixture; none if nothing was counted.
    ///
    /// With shares `s_e` of the choices, the evenness is their entropy `−Σ s_e ln s_e` over `ln E`: 100 % if all experts
    /// were chosen alike, 0 if it was always the same one.
    pub(super) fn table(&self) -> Option<String> {
        let choices: u64 = self.counts.first()?.1.iter().sum();
        if choices == 0 {
            return None;
        }
        let (experts, each) = (self.experts, choices / self.tokens.max(1));
        let mut table = format!("{} tokens, {each} of {experts} experts each\n", self.tokens);
        let _ = writeln!(table, "layer  evenness  chosen  busiest, with their share of the choices");
        for (layer, counts) in &self.counts {
            let all = counts.iter().sum::<u64>().max(1) as f64;
            let share = |count: &u64| *count as f64 / all;
            let chosen = counts.iter().filter(|count| **count > 0);
            let entropy: f64 = chosen.clone().map(|count| -share(count) * share(count).ln()).sum();
            // Adding zero makes -0 into 0.
            let even = if experts > 1 { (entropy + 0.0) / (experts as f64).ln() } else { 1.0 };
            let mut order: Vec<usize> = (0..counts.len()).filter(|expert| counts[*expert] > 0).collect();
            order.sort_by_key(|expert| std::cmp::Reverse(counts[*expert]));
            let used = format!("{}/{experts}", chosen.count());
            // Writing to a string does not fail.
            let _ = write!(table, "{layer:>5}  {:>6.1} %  {used:>6}", 100.0 * even);
            for expert in order.iter().take(SHOWN) {
                let _ = write!(table, "  {expert:>3} {:>5.1} %", 100.0 * share(&counts[*expert]));
            }
            table.push('\n');
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use olmoe_model::config::FeedForward;

    use super::*;

    fn token(experts: &[&[u32]]) -> Token {
        let experts = experts.iter().map(|layer| layer.to_vec()).collect();
        Token { id: 0, text: String::new(), logprob: None, alternatives: Vec::new(), experts }
    }

    #[test]
    fn shares_and_evenness() {
        let mut config = ModelConfig::release();
        let FeedForward::Moe(moe) = &mut config.feed_forward else { panic!("the release model has experts") };
        let dense = moe.expert;
        (moe.num_experts, moe.top_k, config.n_layers) = (4, 2, 2);
        let mut counted = Experts::new(&config);
        assert_eq!(counted.table(), None);
        counted.add(&token(&[&[0, 1], &[3, 2]]));
        counted.add(&token(&[&[2, 3], &[3, 0]]));
        let expected = "2 tokens, 2 of 4 experts each\n\
            layer  evenness  chosen  busiest, with their share of the choices\n    \
            0   100.0 %     4/4    0  25.0 %    1  25.0 %    2  25.0 %    3  25.0 %\n    \
            1    75.0 %     3/4    3  50.0 %    0  25.0 %    2  25.0 %\n";
        assert_eq!(counted.table().unwrap(), expected);
        config.even_layers = Some(dense);
        let mut one = Experts::new(&config);
        one.add(&token(&[&[3]]));
        assert!(one.table().unwrap().contains("    1     0.0 %     1/4    3 100.0 %\n"), "{:?}", one.table());
    }
}
