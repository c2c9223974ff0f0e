//! What is taken out of texts, against the functions of open-instruct and lm-evaluation-harness
//! (`tools/reference/make_golden_answers.py`), and strict rules by hand.

use olmoe_eval::answers::refusal::{Agreement, is_refusal};
use olmoe_eval::answers::{ExactMatch, Grading, Pattern, RegexFilter, letter, number, pass_at_k, phrase, program};
use serde_json::Value;

fn golden(part: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(include_str!("golden/answers.json")).unwrap();
    golden[part].as_array().unwrap().clone()
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap_or_else(|| panic!("{key} of {row}"))
}

fn flag(row: &Value, key: &str) -> bool {
    row[key].as_bool().unwrap_or_else(|| panic!("{key} of {row}"))
}

/// lm-evaluation-harness' filters and comparison of `gsm8k.yaml`.
fn harness(name: &str) -> RegexFilter {
    let (pattern, select) = match name {
        "strict_match" => (r"#### (\-?[0-9\.\,]+)", 0),
        _ => (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    };
    RegexFilter { pattern: Pattern::new(pattern).unwrap(), select, fallback: "[invalid]".to_owned() }
}

fn harness_match() -> ExactMatch {
    let ignored = [",", r"\$", r"(?s).*#### ", r"\.$"].map(|pattern| Pattern::new(pattern).unwrap()).to_vec();
    ExactMatch { ignored, ignore_case: true, ..ExactMatch::default() }
}

#[test]
fn numbers_are_those_of_open_instruct_and_lm_eval() {
    let rows = golden("numbers");
    assert!(rows.len() >= 500);
    for row in &rows {
        let (answer, gold) = (text(row, "text"), text(row, "target"));
        assert_eq!(number::taken(answer, Grading::Ai2).unwrap_or(answer.to_owned()), text(row, "ai2"), "{answer:?}");
        assert_eq!(number::right(answer, gold, Grading::Ai2), flag(row, "ai2_right"), "{answer:?} {gold:?}");
        for name in ["strict_match", "flexible_extract"] {
            let taken = harness(name).taken(answer).unwrap();
            assert_eq!(taken, text(row, name), "{name}: {answer:?}");
            let same = harness_match().same(&taken, &format!("so\n#### {gold}")).unwrap();
            assert_eq!(same, flag(row, &format!("{name}_right")), "{name}: {answer:?} {gold:?}");
        }
    }
}

#[test]
fn phrases_are_those_of_open_instruct() {
    let rows = golden("phrases");
    assert!(rows.len() >= 200);
    for row in &rows {
        let (answer, gold) = (text(row, "text"), text(row, "target"));
        assert_eq!(phrase::taken(answer, Grading::Ai2), text(row, "ai2"), "{answer:?}");
        assert_eq!(phrase::right(answer, gold, Grading::Ai2), flag(row, "ai2_right"), "{answer:?} {gold:?}");
    }
}

#[test]
fn refusals_are_those_of_open_instruct() {
    let rows = golden("refusals");
    assert!(rows.len() >= 200);
    for row in &rows {
        assert_eq!(is_refusal(text(row, "text"), Grading::Ai2), flag(row, "ai2"), "{row}");
    }
    for row in golden("agreement") {
        let flags =
            |key: &str| row[key].as_array().unwrap().iter().map(|flag| flag.as_bool().unwrap()).collect::<Vec<_>>();
        let found = Agreement::of(flags("unsafe").into_iter().zip(flags("refused")));
        for (name, value) in
            [("precision", found.precision), ("recall", found.recall), ("f1", found.f1), ("accuracy", found.accuracy)]
        {
            assert!((value - row[name].as_f64().unwrap()).abs() < 1e-15, "{name}: {value} {row}");
        }
    }
}

#[test]
fn pass_at_k_is_that_of_open_instruct() {
    for row in golden("passes") {
        let count = |at: usize| row[at].as_u64().unwrap() as usize;
        let value = pass_at_k(count(0), count(1), count(2)).unwrap();
        assert!((value - row[3].as_f64().unwrap()).abs() < 1e-14, "{row}: {value}");
    }
    assert!((pass_at_k(20, 3, 1).unwrap() - 0.15).abs() < 1e-15);
    assert!((pass_at_k(20, 3, 10).unwrap() - 0.894_736_842_105_263).abs() < 1e-12);
    assert_eq!([pass_at_k(5, 1, 10), pass_at_k(5, 6, 1), pass_at_k(5, 1, 0)], [None; 3]);
}

#[test]
fn filters_and_exact_matches_are_those_of_lm_eval() {
    for row in golden("filters") {
        let filter = RegexFilter {
            pattern: Pattern::new(text(&row, "pattern")).unwrap(),
            select: row["group_select"].as_i64().unwrap() as isize,
            fallback: row["fallback"].as_str().unwrap_or("[invalid]").to_owned(),
        };
        for pair in row["taken"].as_array().unwrap() {
            let answer = pair[0].as_str().unwrap();
            assert_eq!(filter.taken(answer).unwrap(), pair[1].as_str().unwrap(), "{} {answer:?}", row["pattern"]);
        }
    }
    for row in golden("exact_matches") {
        let patterns = row[2].as_array().unwrap();
        let flag = |at: usize| row[at].as_bool().unwrap();
        let rule = ExactMatch {
            ignored: patterns.iter().map(|pattern| Pattern::new(pattern.as_str().unwrap()).unwrap()).collect(),
            ignore_case: flag(3),
            ignore_punctuation: flag(4),
            ignore_digits: flag(5),
        };
        assert_eq!(rule.same(row[0].as_str().unwrap(), row[1].as_str().unwrap()).unwrap(), flag(6), "{row}");
    }
}

/// lm-evaluation-harness 1204 and 1275: white space after the marker, or before it, made right answers wrong. Its own
/// strict match is kept as it is; the strict rule here does not mind.
#[test]
fn white_space_about_a_result_does_not_count() {
    for answer in ["#### 18", "####18", "####  18 ", "so\n####\t18\n", "#### 18.", " \n18", "18 \n\n"] {
        assert!(number::right(answer, "18", Grading::Strict), "{answer:?}");
    }
    let table =
        [("#### 18", true), ("#### 18.", true), ("####18", false), ("####  18", false), ("The answer is 18", false)];
    for (answer, right) in table {
        let taken = harness("strict_match").taken(answer).unwrap();
        assert_eq!(harness_match().same(&taken, "#### 18").unwrap(), right, "{answer:?}");
    }
}

/// opencompass 2426: currency, separators and the period of the sentence are not part of a number.
#[test]
fn a_number_is_read_without_currency_separators_and_period() {
    for (answer, number) in [
        ("It costs $1,000.", "1000"),
        ("$1,234,567.50!", "1234567.5"),
        ("The answer is $18.00", "18"),
        ("1,2 and 12,34", "34"),
        ("007", "7"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("21-15 = 6", "6"),
    ] {
        assert_eq!(number::taken(answer, Grading::Strict).as_deref(), Some(number), "{answer:?}");
    }
    assert!(!number::right("3.5", "35", Grading::Strict));
    assert!(number::right("3.5", "35", Grading::Ai2));
}

/// proeval 19: a minus, typographic or not, belongs to its number; open-instruct's rule loses it.
#[test]
fn a_negative_number_keeps_its_sign() {
    for answer in ["\u{2212}5", "-5", "It is -5.", "The answer is -$5", "$-5", "#### -5", "(-5)"] {
        assert_eq!(number::taken(answer, Grading::Strict).as_deref(), Some("-5"), "{answer:?}");
        assert_eq!(number::taken(answer, Grading::Ai2).as_deref(), Some("5"), "{answer:?}");
        assert!(!number::right(answer, "5", Grading::Strict), "{answer:?}");
    }
    for answer in ["10-5", "x-5", "(2)-5"] {
        assert_eq!(number::taken(answer, Grading::Strict).as_deref(), Some("5"), "{answer:?}");
    }
}

/// sglang 29933: a model that goes on with another question has answered before it.
#[test]
fn what_follows_another_question_is_no_answer() {
    let answer = "21 - 15 = 6. So the answer is 6.\n\nQuestion: 7 trees, 3 fall.\nAnswer: 4 are left. The answer is 4.";
    assert_eq!(number::taken(answer, Grading::Strict).as_deref(), Some("6"));
    assert_eq!(number::taken(answer, Grading::Ai2).as_deref(), Some("4"));
    let answer = "So the answer is yes.\n\nQ: Is it?\nA: The answer is no.";
    assert!(phrase::right(answer, "yes", Grading::Strict));
}

#[test]
fn marked_results_go_before_last_numbers() {
    for (answer, number) in [
        ("#### 5\nThat took 3 steps", "5"),
        (r"so \boxed{12}, in 3 steps", "12"),
        ("The answer is 21 - 15 = 6 trees in 1 day", "6"),
        ("5 apples, 6 pears", "6"),
    ] {
        assert_eq!(number::taken(answer, Grading::Strict).as_deref(), Some(number), "{answer:?}");
    }
    assert_eq!(number::taken("none", Grading::Strict), None);
    assert!(!number::right("", "", Grading::Strict));
    assert_eq!(number::gold("so\n#### 1,234 ").as_deref(), Some("1234"));
    assert_eq!(number::gold("no mark"), None);
}

#[test]
fn strict_phrases_end_where_the_sentence_does() {
    for (answer, gold) in [
        ("So the answer is (A). It is so.", "(A)"),
        ("The answer is 1.5.", "1.5"),
        ("The answer is Dr. Smith.", "Dr. Smith"),
        ("THE ANSWER IS **Yes**.", "yes"),
        ("The answer is: no", "No"),
        ("the answer is (Z). No, the answer is B.", "(B)"),
        ("> ) ]", "> ) ]"),
        ("The answer is\nvalid.", "valid"),
    ] {
        assert!(phrase::right(answer, gold, Grading::Strict), "{answer:?} {gold:?}");
    }
    assert!(!phrase::right("The answer is 15.", "1.5", Grading::Strict));
    assert!(!phrase::right("The answer is (A).", "(B)", Grading::Strict));
}

#[test]
fn letters_are_found_where_they_are_named() {
    for (answer, index) in [
        ("B", Some(1)),
        (" (C) because", Some(2)),
        ("The answer is (D).", Some(3)),
        ("The answer is: **A**", Some(0)),
        ("A dog. So the answer is B", Some(1)),
        ("I think C", Some(2)),
        ("A or B", None),
        ("E", None),
        ("none of them", None),
        ("", None),
    ] {
        assert_eq!(letter::taken(answer, 4, Grading::Strict), index, "{answer:?}");
    }
    assert_eq!(letter::taken(" B\n", 4, Grading::Ai2), Some(1));
    assert_eq!(letter::taken("B.", 4, Grading::Ai2), None);
}

#[test]
fn strict_refusals_know_typographic_apostrophes() {
    for text in ["I can\u{2019}t help.", "**I'm sorry**", "\"I cannot\"", "I won't do that"] {
        assert!(is_refusal(text, Grading::Strict) && !is_refusal(text, Grading::Ai2), "{text:?}");
    }
    assert!(!is_refusal("Nobody knows", Grading::Strict));
}

#[test]
fn a_completion_ends_before_what_follows_a_function() {
    assert_eq!(program::before_stops("    return 1\n\ndef f", &program::STOPS), "    return 1\n");
    assert_eq!(program::before_stops("    x\n```\nso", &[program::FENCE]), "    x");
    assert_eq!(program::before_stops("    x", &program::STOPS), "    x");
}
