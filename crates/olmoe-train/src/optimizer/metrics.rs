//! What a log says of a step: norms, means and extremes of every parameter, its gradient, its moments and its update.

use olmoe_tensor::ops::summary::Summary;

/// The metrics of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The tensors of OLMo, each with the places of its parts among `parameters`.
    tensors: Vec<(String, Vec<usize>)>,
    /// Global L2 norm of the gradients before clipping.
    pub total_grad_norm: f64,
    /// The share of the tensors whose gradient was clipped.
    pub clipping_rate: f64,
    /// The cosine between LionW's update before and after it takes the sign; only with `record_update_metrics`.
    pub update_cosine: Option<f64>,
    /// Those of each trained parameter, in canonical order.
    pub parameters: Vec<ParameterMetrics>,
}

/// The metrics of a parameter: gradient before clipping, the rest before the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterMetrics {
    /// The gradient.
    pub grad: Summary,
    /// The parameter.
    pub param: Summary,
    /// The first moment, of AdamW and LionW.
    pub exp_avg: Option<Summary>,
    /// The second moment, of AdamW and RMSprop.
    pub exp_avg_sq: Option<Summary>,
    /// The running mean of the norm of its tensor's gradient, with adaptive clipping, after the step.
    pub grad_norm_exp_avg: Option<f64>,
    /// What was added to the parameter beside the decay (AdamW) or with it (RMSprop), or the same before its sign was taken (LionW); only with
    /// `record_update_metrics`.
    pub update: Option<Summary>,
}

impl Metrics {
    /// Of no step yet; `names` are those of the tensors of OLMo that the parameters are parts of.
    pub(super) fn new(names: &[String]) -> Metrics {
        let none = ParameterMetrics {
            grad: Summary::EMPTY,
            param: Summary::EMPTY,
            exp_avg: None,
            exp_avg_sq: None,
            grad_norm_exp_avg: None,
            update: None,
        };
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        for (at, name) in names.iter().enumerate() {
            // The parts of a tensor are neighbours, or nearly.
            match tensors.iter_mut().rfind(|(known, _)| known == name) {
                Some((_, parts)) => parts.push(at),
                None => tensors.push((name.clone(), vec![at])),
            }
        }
        Metrics {
            tensors,
            total_grad_norm: 0.0,
            clipping_rate: 0.0,
            update_cosine: None,
            parameters: vec![none; names.len()],
        }
    }

    /// The cosine between the updates and their signs, all parameters together.
    pub(super) fn cosine(&self) -> f64 {
        let sum = |part: fn(&Summary) -> f64| self.parameters.iter().filter_map(|p| p.update.as_ref()).map(part).sum();
        let (dot, squares, nonzero): (f64, f64, f64) = (sum(|u| u.sum_abs), sum(|u| u.squares), sum(|u| u.nonzero));
        dot / (squares.sqrt() * nonzero.sqrt()).max(1e-8)
    }

    /// The metrics of a tensor, from those of its parts.
    fn joined(&self, parts: &[usize]) -> ParameterMetrics {
        let mut parts = parts.iter().map(|at| self.parameters[*at]);
        let mut all = parts.next().expect("a tensor has a part");
        for part in parts {
            all.grad.add(&part.grad);
            all.param.add(&part.param);
            let optional = [
                (&mut all.exp_avg, &part.exp_avg),
                (&mut all.exp_avg_sq, &part.exp_avg_sq),
                (&mut all.update, &part.update),
            ];
            for (sum, summary) in optional {
                if let (Some(sum), Some(summary)) = (sum, summary) {
                    sum.add(summary);
                }
            }
        }
        all
    }

    /// All of them as OLMo logs them: its names, and its tensors, which hold queries, keys and values together, and the gate
    /// of a dense MLP with what it gates. `min` and `max` are of sizes, without the sign.
    pub fn named(&self) -> impl Iterator<Item = (String, f64)> {
        let single = [
            ("total_grad_norm", Some(self.total_grad_norm)),
            ("clipping_rate", Some(self.clipping_rate)),
            ("update_cos_sim", self.update_cosine),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((format!("optim/{name}"), value?)));
        let parameters = self.tensors.iter().flat_map(|(name, parts)| {
            let metrics = self.joined(parts);
            let summaries = [
                ("grad", Some(metrics.grad)),
                ("param", Some(metrics.param)),
                ("exp_avg", metrics.exp_avg),
                ("exp_avg_sq", metrics.exp_avg_sq),
            ];
            let summaries = summaries.into_iter().flat_map(move |(what, summary)| {
                let values = summary.map(|s| {
                    [("min", s.min_abs.into()), ("max", s.max_abs.into()), ("avg", s.mean()), ("norm", s.norm())]
                });
                values.into_iter().flatten().map(move |(part, value)| (format!("optim/{what}/{name}.{part}"), value))
            });
            // OLMo has these of AdamW, not of LionW.
            let update = metrics.update.filter(|_| metrics.exp_avg_sq.is_some());
            let update = update.map(|s| [("norm", s.norm()), ("max", s.max_abs.into())]);
            let update = update.into_iter().flatten();
            let update = update.map(move |(part, value)| (format!("optim/step/{name}.{part}"), value));
            let mean = metrics.grad_norm_exp_avg.map(|mean| (format!("optim/grad_norm_exp_avg/{name}"), mean));
            summaries.chain(update).chain(mean)
        });
        single.chain(parameters)
    }
}
