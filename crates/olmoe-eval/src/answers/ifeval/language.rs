//! The language of a text.

use whatlang::Lang;

/// The languages that can be told, by their codes of ISO 639-1 as IFEval has them.
const CODES: [(&str, Lang); 50] = [
    ("af", Lang::Afr),
    ("ar", Lang::Ara),
    ("bg", Lang::Bul),
    ("bn", Lang::Ben),
    ("ca", Lang::Cat),
    ("cs", Lang::Ces),
    ("cy", Lang::Cym),
    ("da", Lang::Dan),
    ("de", Lang::Deu),
    ("el", Lang::Ell),
    ("en", Lang::Eng),
    ("es", Lang::Spa),
    ("et", Lang::Est),
    ("fa", Lang::Pes),
    ("fi", Lang::Fin),
    ("fr", Lang::Fra),
    ("gu", Lang::Guj),
    ("he", Lang::Heb),
    ("hi", Lang::Hin),
    ("hr", Lang::Hrv),
    ("hu", Lang::Hun),
    ("id", Lang::Ind),
    ("it", Lang::Ita),
    ("ja", Lang::Jpn),
    ("kn", Lang::Kan),
    ("ko", Lang::Kor),
    ("lt", Lang::Lit),
    ("lv", Lang::Lav),
    ("mk", Lang::Mkd),
    ("ml", Lang::Mal),
    ("mr", Lang::Mar),
    ("ne", Lang::Nep),
    ("nl", Lang::Nld),
    ("no", Lang::Nob),
    ("pa", Lang::Pan),
    ("pl", Lang::Pol),
    ("pt", Lang::Por),
    ("ro", Lang::Ron),
    ("ru", Lang::Rus),
    ("sk", Lang::Slk),
    ("sl", Lang::Slv),
    ("sv", Lang::Swe),
    ("ta", Lang::Tam),
    ("te", Lang::Tel),
    ("th", Lang::Tha),
    ("tl", Lang::Tgl),
    ("tr", Lang::Tur),
    ("uk", Lang::Ukr),
    ("ur", Lang::Urd),
    ("vi", Lang::Vie),
];

/// The most frequent words of Swahili, which whatlang does not know.
const SWAHILI: [&str; 40] = [
    "na", "ya", "wa", "kwa", "ni", "katika", "la", "za", "cha", "kuwa", "hii", "hiyo", "au", "pia", "kama", "kwamba",
    "lakini", "watu", "sana", "hivyo", "huu", "hizi", "yake", "yao", "wao", "wake", "vya", "kila", "wakati", "ili",
    "bila", "sisi", "mimi", "wewe", "yeye", "hapa", "si", "mtu", "moja", "nchi",
];
/// The share of its words that Swahili's frequent ones have to be.
const SWAHILI_SHARE: f64 = 0.15;

/// Whether the code of a language is known here.
pub(super) fn is_known(code: &str) -> bool {
    code == "sw" || code.starts_with("zh") || CODES.iter().any(|(known, _)| *known == code)
}

/// Whether the text is in the language with this code of ISO 639-1. A text without letters is in every language.
pub(super) fn is_in(text: &str, code: &str) -> bool {
    if !text.chars().any(char::is_alphabetic) {
        return true;
    }
    // The case says nothing of the language, and trigrams of capitals are in no table.
    let text = text.to_lowercase();
    if is_swahili(&text) {
        return code == "sw";
    }
    match whatlang::detect_lang(&text) {
        None => true,
        Some(Lang::Cmn) => code.starts_with("zh"),
        Some(found) => CODES.iter().any(|(known, lang)| *known == code && *lang == found),
    }
}

fn is_swahili(lower: &str) -> bool {
    let words = lower.split(|letter: char| !letter.is_alphabetic()).filter(|word| !word.is_empty());
    let (mut all, mut frequent) = (0u32, 0u32);
    for word in words {
        all += 1;
        frequent += u32::from(SWAHILI.contains(&word));
    }
    all >= 4 && f64::from(frequent) >= SWAHILI_SHARE * f64::from(all)
}
