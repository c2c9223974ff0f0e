//! The subjects of MMLU (Hendrycks et al., arXiv 2009.03300) and how they are grouped.

/// The data set on the Hugging Face hub.
pub const DATA: &str = "hails/mmlu_no_train";

/// The 57 subjects with their fields, sorted by name.
pub const SUBJECTS: [(&str, &str); 57] = [
    ("abstract_algebra", "math"),
    ("anatomy", "health"),
    ("astronomy", "physics"),
    ("business_ethics", "business"),
    ("clinical_knowledge", "health"),
    ("college_biology", "biology"),
    ("college_chemistry", "chemistry"),
    ("college_computer_science", "computer science"),
    ("college_mathematics", "math"),
    ("college_medicine", "health"),
    ("college_physics", "physics"),
    ("computer_security", "computer science"),
    ("conceptual_physics", "physics"),
    ("econometrics", "economics"),
    ("electrical_engineering", "engineering"),
    ("elementary_mathematics", "math"),
    ("formal_logic", "philosophy"),
    ("global_facts", "other"),
    ("high_school_biology", "biology"),
    ("high_school_chemistry", "chemistry"),
    ("high_school_computer_science", "computer science"),
    ("high_school_european_history", "history"),
    ("high_school_geography", "geography"),
    ("high_school_government_and_politics", "politics"),
    ("high_school_macroeconomics", "economics"),
    ("high_school_mathematics", "math"),
    ("high_school_microeconomics", "economics"),
    ("high_school_physics", "physics"),
    ("high_school_psychology", "psychology"),
    ("high_school_statistics", "math"),
    ("high_school_us_history", "history"),
    ("high_school_world_history", "history"),
    ("human_aging", "health"),
    ("human_sexuality", "culture"),
    ("international_law", "law"),
    ("jurisprudence", "law"),
    ("logical_fallacies", "philosophy"),
    ("machine_learning", "computer science"),
    ("management", "business"),
    ("marketing", "business"),
    ("medical_genetics", "health"),
    ("miscellaneous", "other"),
    ("moral_disputes", "philosophy"),
    ("moral_scenarios", "philosophy"),
    ("nutrition", "health"),
    ("philosophy", "philosophy"),
    ("prehistory", "history"),
    ("professional_accounting", "other"),
    ("professional_law", "law"),
    ("professional_medicine", "health"),
    ("professional_psychology", "psychology"),
    ("public_relations", "politics"),
    ("security_studies", "politics"),
    ("sociology", "culture"),
    ("us_foreign_policy", "politics"),
    ("virology", "health"),
    ("world_religions", "philosophy"),
];

/// The four categories with their fields, in the order in which their questions come.
pub const CATEGORIES: [(&str, &[&str]); 4] = [
    ("stem", &["physics", "chemistry", "biology", "computer science", "math", "engineering"]),
    ("humanities", &["history", "philosophy", "law"]),
    ("social_sciences", &["politics", "culture", "economics", "geography", "psychology"]),
    ("other", &["other", "business", "health"]),
];

/// The subjects of a category: field after field, sorted by name in each.
pub fn subjects(category: &str) -> impl Iterator<Item = &'static str> {
    let fields = CATEGORIES.iter().find(|(name, _)| *name == category).map_or(&[][..], |(_, fields)| fields);
    fields.iter().flat_map(|field| SUBJECTS.iter().filter(move |(_, own)| own == field).map(|(subject, _)| *subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_a_category() {
        let counts: Vec<usize> = CATEGORIES.iter().map(|(name, _)| subjects(name).count()).collect();
        assert_eq!(counts, [18, 13, 12, 14]);
        assert_eq!(subjects("none").count(), 0);
        assert!(SUBJECTS.is_sorted());
    }
}
