//! The data sets of the suites: where each layout keeps them, and where they are published.

/// A data set by the names that OLMo's evaluation gives it.
pub(super) struct Set {
    /// The path, with the configuration after a colon.
    pub(super) name: &'static str,
    /// The repository on the Hugging Face hub.
    pub(super) hub: &'static str,
    /// The name in a folder of JSON lines, `datasets/{flat}.{split}.jsonl.gz`.
    pub(super) flat: &'static str,
}

const fn set(name: &'static str, hub: &'static str, flat: &'static str) -> Set {
    Set { name, hub, flat }
}

/// All that have names beside that of their repository.
pub(super) const SETS: [Set; 20] = [
    set("ai2_arc:ARC-Challenge", "allenai/ai2_arc", "arc_challenge"),
    set("ai2_arc:ARC-Easy", "allenai/ai2_arc", "arc_easy"),
    set("allenai/basic_arithmetic", "allenai/basic_arithmetic", "basic_arithmetic"),
    set("boolq", "google/boolq", "boolq"),
    set("glue:mrpc", "nyu-mll/glue", "mrpc"),
    set("glue:rte", "nyu-mll/glue", "rte"),
    set("glue:sst2", "nyu-mll/glue", "sst2"),
    set("gsm8k:main", "openai/gsm8k", "gsm8k"),
    set("hellaswag", "Rowan/hellaswag", "hellaswag"),
    set("nq_open", "google-research-datasets/nq_open", "nq_open"),
    set("openbookqa:main", "allenai/openbookqa", "openbookqa"),
    set("piqa:plain_text", "ybisk/piqa", "piqa"),
    set("sciq", "allenai/sciq", "sciq"),
    set("social_i_qa", "allenai/social_i_qa", "social_iqa"),
    set("super_glue:cb", "aps/super_glue", "cb"),
    set("super_glue:copa", "aps/super_glue", "copa"),
    // Not the rows of `boolq`: these have the titles of the passages in them.
    set("super_glue:boolq", "aps/super_glue", "super_glue_boolq"),
    set("tau/commonsense_qa", "tau/commonsense_qa", "commonsense_qa"),
    set("trivia_qa:rc.wikipedia.nocontext", "mandarjoshi/trivia_qa", "trivia_qa"),
    set("winogrande:winogrande_xl", "allenai/winogrande", "winogrande_xl"),
];

/// The data set of MMLU, whose configurations are its subjects.
pub(super) const MMLU: &str = "hails/mmlu_no_train";

/// The entry of a data set.
pub(super) fn known(path: &str, config: Option<&str>) -> Option<&'static Set> {
    let name = config.map_or_else(|| path.to_owned(), |config| format!("{path}:{config}"));
    SETS.iter().find(|set| set.name == name)
}
