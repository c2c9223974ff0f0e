//! How often each expert was chosen, and statistics of these counts.

/// How often each expert of each mixture-of-experts layer was chosen for some tokens. Mixture-of-experts layers are
/// called *mixtures* here, and are counted from 0 without the dense layers between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertCounts {
    experts: usize,
    /// The index of each mixture among the layers of the model.
    layers: Vec<usize>,
    /// `[mixture][expert]`
    counts: Vec<Vec<u64>>,
    tokens: u64,
}

impl ExpertCounts {
    /// Counts of zero for the mixtures at the indices `layers` of a model, with `experts` experts each.
    pub fn new(layers: impl IntoIterator<Item = usize>, experts: usize) -> ExpertCounts {
        let layers: Vec<usize> = layers.into_iter().collect();
        ExpertCounts { experts, counts: vec![vec![0; experts]; layers.len()], layers, tokens: 0 }
    }

    /// Adds the choices for `tokens` tokens: the chosen experts of each mixture, in any order.
    pub fn add<'a>(&mut self, tokens: u64, mixtures: impl IntoIterator<Item = &'a [u32]>) {
        self.add_times(1, tokens, mixtures);
    }

    /// The same, where the tokens count several times.
    pub fn add_times<'a>(&mut self, times: u64, tokens: u64, mixtures: impl IntoIterator<Item = &'a [u32]>) {
        self.tokens += times * tokens;
        for (counts, chosen) in self.counts.iter_mut().zip(mixtures) {
            for expert in chosen {
                if let Some(count) = counts.get_mut(*expert as usize) {
                    *count += times;
                }
            }
        }
    }

    /// The number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The number of experts of a mixture.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The number of experts that are chosen for a token in a mixture.
    pub fn top_k(&self) -> u64 {
        self.counts.first().map_or(0, |counts| counts.iter().sum::<u64>() / self.tokens.max(1))
    }

    /// The index of each mixture among the layers of the model.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// How often each expert of a mixture was chosen.
    pub fn choices(&self, mixture: usize) -> &[u64] {
        &self.counts[mixture]
    }

    /// Share of the tokens for which each expert of a mixture was chosen, 0 to 1: `K / E` for all if the load is even.
    ///
    /// For the tokens of one domain, this is the domain specialisation of the OLMoE paper.
    pub fn shares_of_tokens(&self, mixture: usize) -> Vec<f64> {
        self.divided(mixture, self.tokens)
    }

    /// Share of each expert in the choices of a mixture; the shares sum to 1.
    pub fn shares_of_choices(&self, mixture: usize) -> Vec<f64> {
        self.divided(mixture, self.counts[mixture].iter().sum())
    }

    fn divided(&self, mixture: usize, by: u64) -> Vec<f64> {
        self.counts[mixture].iter().map(|count| *count as f64 / by.max(1) as f64).collect()
    }

    /// Entropy of the shares of the choices of a mixture, divided by its largest value: `−Σ s_e ln s_e / ln E`. It is 1
    /// if all experts were chosen equally often, and 0 if always the same one was chosen.
    pub fn evenness(&self, mixture: usize) -> f64 {
        if self.experts < 2 {
            return 1.0;
        }
        let shares = self.shares_of_choices(mixture);
        let entropy: f64 = shares.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
        // Adding 0 turns -0 into 0.
        (entropy + 0.0) / (self.experts as f64).ln()
    }

    /// The number of experts of a mixture that were chosen at least once.
    pub fn used(&self, mixture: usize) -> usize {
        self.counts[mixture].iter().filter(|count| **count > 0).count()
    }

    /// The experts of a mixture that were chosen at least once, in descending order of their counts.
    pub fn busiest(&self, mixture: usize) -> Vec<usize> {
        let counts = &self.counts[mixture];
        let mut order: Vec<usize> = (0..counts.len()).filter(|expert| counts[*expert] > 0).collect();
        order.sort_by_key(|expert| std::cmp::Reverse(counts[*expert]));
        order
    }
}

/// How specialised the experts of a mixture are for the texts: the mean over the texts of the total variation distance
/// `½ Σ_e |s_e − m_e|`, with `s` the shares of a text in the choices and `m` the mean of these shares over all texts.
/// It is 0 if all texts have the same shares, and `1 − 1/n` for `n` texts that have no expert in common.
pub fn specialisation(texts: &[ExpertCounts], mixture: usize) -> f64 {
    let shares: Vec<Vec<f64>> = texts.iter().map(|text| text.shares_of_choices(mixture)).collect();
    let (count, experts) = (shares.len().max(1) as f64, shares.first().map_or(0, Vec::len));
    let mean: Vec<f64> = (0..experts).map(|e| shares.iter().map(|text| text[e]).sum::<f64>() / count).collect();
    let distance = |text: &Vec<f64>| text.iter().zip(&mean).map(|(s, m)| (s - m).abs()).sum::<f64>() / 2.0;
    shares.iter().map(distance).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(layers: &[&[u32]], tokens: u64) -> ExpertCounts {
        let mut counts = ExpertCounts::new(0..layers.len(), 4);
        counts.add(tokens, layers.iter().copied());
        counts
    }

    #[test]
    fn shares_evenness_and_order() {
        let counts = counted(&[&[0, 1, 2, 3], &[3, 2, 3, 0]], 2);
        assert_eq!((counts.tokens(), counts.top_k(), counts.experts()), (2, 2, 4));
        assert_eq!(counts.shares_of_tokens(1), [0.5, 0.0, 0.5, 1.0]);
        assert_eq!(counts.shares_of_choices(1), [0.25, 0.0, 0.25, 0.5]);
        assert_eq!(counts.evenness(0), 1.0);
        // 0.5 of ln 2 + 0.5 of ln 4 over ln 4
        assert!((counts.evenness(1) - 0.75).abs() < 1e-12);
        assert_eq!((counts.used(1), counts.busiest(1)), (3, vec![3, 0, 2]));
        let mut three = ExpertCounts::new(0..2, 4);
        three.add_times(3, 2, [&[0, 1, 2, 3][..], &[3, 2, 3, 0]]);
        assert_eq!((three.tokens(), three.choices(1)), (6, &[3, 0, 3, 6][..]));
        // An expert that the layer does not have is not counted.
        assert_eq!(counted(&[&[7]], 1).used(0), 0);
        assert_eq!(counted(&[&[3, 3]], 2).evenness(0), 0.0);
    }

    #[test]
    fn texts_with_experts_of_their_own_are_far_apart() {
        let (a, b) = (counted(&[&[0, 1], &[0, 1]], 1), counted(&[&[2, 3], &[1, 0]], 1));
        assert_eq!(specialisation(&[a.clone(), b], 0), 0.5);
        assert_eq!(specialisation(&[a.clone(), a], 1), 0.0);
    }
}
