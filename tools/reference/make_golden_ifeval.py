"""Golden verdicts of IFEval, `crates/olmoe-eval/tests/golden/ifeval.json`, and sentences and words of NLTK,
`crates/olmoe-eval/tests/golden/sentences.json`.

    python make_punkt_english.py english.json --tab NLTK_DATA
    NLTK_DATA=NLTK_DATA python make_golden_ifeval.py --prompts ifeval_input_data.jsonl --novels novels.jsonl.gz

The verdicts are those of lm-eval's own `lm_eval.tasks.ifeval` (needs langdetect and immutabledict) for every instruction
of the 541 prompts on some hundred answers: made ones that follow, or nearly, instructions drawn from the prompts, parts of
novels in the public domain, and edges. They are kept as bits, the lowest first, an answer each, strict and loose. Where
the original draws at random (letters that are none) there is no verdict; languages are in `language`, by themselves, since
langdetect draws, too: the verdict of seven seeds, if they agree, and null if they do not.
`--check` compares with the files and writes nothing."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from pathlib import Path

import langdetect
import nltk
from langdetect import DetectorFactory, LangDetectException
from lm_eval.tasks.ifeval import instructions_registry, instructions_util, utils

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "olmoe-eval" / "tests" / "golden"
ENGLISH = {"change_case:english_capital", "change_case:english_lowercase"}

LANGUAGES = {
    "en": "The old bridge crosses the river near the market, and every morning people walk over it to buy bread and fish. In winter the water is very high.",
    "de": "Die alte Brücke führt in der Nähe des Marktes über den Fluss, und jeden Morgen gehen die Leute hinüber, um Brot und Fisch zu kaufen. Im Winter steht das Wasser sehr hoch.",
    "fr": "Le vieux pont traverse la rivière près du marché, et chaque matin les gens le traversent pour acheter du pain et du poisson. En hiver, l'eau est très haute.",
    "it": "Il vecchio ponte attraversa il fiume vicino al mercato, e ogni mattina la gente lo attraversa per comprare pane e pesce. In inverno l'acqua è molto alta.",
    "pt": "A velha ponte atravessa o rio perto do mercado, e todas as manhãs as pessoas passam por ela para comprar pão e peixe. No inverno a água fica muito alta.",
    "es": "El viejo puente cruza el río cerca del mercado, y cada mañana la gente lo cruza para comprar pan y pescado. En invierno el agua está muy alta.",
    "fi": "Vanha silta ylittää joen lähellä toria, ja joka aamu ihmiset kävelevät sen yli ostamaan leipää ja kalaa. Talvella vesi on hyvin korkealla.",
    "sw": "Daraja la zamani linavuka mto karibu na soko, na kila asubuhi watu hutembea juu yake kununua mkate na samaki. Wakati wa baridi maji ni mengi sana katika mto huu.",
    "vi": "Cây cầu cũ bắc qua sông gần chợ, và mỗi buổi sáng mọi người đi qua đó để mua bánh mì và cá. Vào mùa đông nước rất cao.",
    "ru": "Старый мост пересекает реку недалеко от рынка, и каждое утро люди ходят по нему, чтобы купить хлеб и рыбу. Зимой вода стоит очень высоко.",
    "bg": "Старият мост пресича реката близо до пазара и всяка сутрин хората минават по него, за да купят хляб и риба. През зимата водата е много висока.",
    "uk": "Старий міст перетинає річку неподалік від ринку, і щоранку люди ходять по ньому, щоб купити хліб та рибу. Взимку вода стоїть дуже високо.",
    "ar": "يعبر الجسر القديم النهر بالقرب من السوق، وفي كل صباح يسير الناس فوقه لشراء الخبز والسمك. في الشتاء يكون الماء مرتفعا جدا.",
    "fa": "پل قدیمی از روی رودخانه نزدیک بازار می‌گذرد و هر روز صبح مردم برای خرید نان و ماهی از روی آن عبور می‌کنند. در زمستان آب بسیار بالا است.",
    "ur": "پرانا پل بازار کے قریب دریا کو پار کرتا ہے اور ہر صبح لوگ روٹی اور مچھلی خریدنے کے لیے اس پر سے گزرتے ہیں۔ سردیوں میں پانی بہت اونچا ہوتا ہے۔",
    "hi": "पुराना पुल बाज़ार के पास नदी को पार करता है और हर सुबह लोग रोटी और मछली खरीदने के लिए उस पर से चलकर जाते हैं। सर्दियों में पानी बहुत ऊँचा होता है।",
    "mr": "जुना पूल बाजाराजवळ नदी ओलांडतो आणि दररोज सकाळी लोक भाकरी आणि मासे विकत घेण्यासाठी त्यावरून चालत जातात. हिवाळ्यात पाणी खूप उंच असते.",
    "ne": "पुरानो पुल बजार नजिकै नदी पार गर्छ र हरेक बिहान मानिसहरू रोटी र माछा किन्न त्यसमाथि हिँड्छन्। जाडोमा पानी धेरै अग्लो हुन्छ।",
    "bn": "পুরানো সেতুটি বাজারের কাছে নদী পার হয়েছে এবং প্রতিদিন সকালে মানুষ রুটি ও মাছ কিনতে তার উপর দিয়ে হেঁটে যায়। শীতকালে জল খুব উঁচু থাকে।",
    "gu": "જૂનો પુલ બજાર પાસે નદી પાર કરે છે અને દરરોજ સવારે લોકો રોટલી અને માછલી ખરીદવા તેના પરથી ચાલીને જાય છે. શિયાળામાં પાણી ખૂબ ઊંચું હોય છે.",
    "pa": "ਪੁਰਾਣਾ ਪੁਲ ਬਾਜ਼ਾਰ ਦੇ ਨੇੜੇ ਨਦੀ ਨੂੰ ਪਾਰ ਕਰਦਾ ਹੈ ਅਤੇ ਹਰ ਸਵੇਰ ਲੋਕ ਰੋਟੀ ਅਤੇ ਮੱਛੀ ਖਰੀਦਣ ਲਈ ਇਸ ਉੱਤੋਂ ਲੰਘਦੇ ਹਨ। ਸਰਦੀਆਂ ਵਿੱਚ ਪਾਣੀ ਬਹੁਤ ਉੱਚਾ ਹੁੰਦਾ ਹੈ।",
    "ta": "பழைய பாலம் சந்தைக்கு அருகில் ஆற்றைக் கடக்கிறது, ஒவ்வொரு காலையும் மக்கள் ரொட்டியும் மீனும் வாங்க அதன் மேல் நடந்து செல்கிறார்கள். குளிர்காலத்தில் தண்ணீர் மிக உயரமாக இருக்கும்.",
    "te": "పాత వంతెన మార్కెట్ దగ్గర నదిని దాటుతుంది, ప్రతి ఉదయం ప్రజలు రొట్టె మరియు చేపలు కొనడానికి దాని మీదుగా నడుస్తారు. శీతాకాలంలో నీరు చాలా ఎత్తుగా ఉంటుంది.",
    "kn": "ಹಳೆಯ ಸೇತುವೆ ಮಾರುಕಟ್ಟೆಯ ಬಳಿ ನದಿಯನ್ನು ದಾಟುತ್ತದೆ, ಮತ್ತು ಪ್ರತಿದಿನ ಬೆಳಿಗ್ಗೆ ಜನರು ರೊಟ್ಟಿ ಮತ್ತು ಮೀನು ಕೊಳ್ಳಲು ಅದರ ಮೇಲೆ ನಡೆದು ಹೋಗುತ್ತಾರೆ. ಚಳಿಗಾಲದಲ್ಲಿ ನೀರು ತುಂಬಾ ಎತ್ತರವಾಗಿರುತ್ತದೆ.",
    "th": "สะพานเก่าข้ามแม่น้ำใกล้ตลาด และทุกเช้าผู้คนเดินข้ามไปซื้อขนมปังและปลา ในฤดูหนาวน้ำสูงมาก",
    "ko": "오래된 다리는 시장 근처에서 강을 건너고, 매일 아침 사람들은 빵과 생선을 사러 그 위를 걸어갑니다. 겨울에는 물이 아주 높습니다.",
    "ja": "古い橋は市場の近くで川を渡り、毎朝人々はパンと魚を買うためにその上を歩きます。冬には水がとても高くなります。",
}

EDGES = [
    "x", "1", "...", "!?", "My answer is yes.", "I think my answer is no. My answer is no.", "My answer is maybe", '"', '""', '"a"', ' "quoted text." ', "“typographic”",
    '{"a": [1, 2, {"b": null}]}', '```json\n{"a": 1}\n```', '```\n[1, 2]\n```', "```JSON\nNaN\n```", '{"a": 1,}', "[1, 2", "{'a': 1}", '"\\ud800"', "01", "```json```",
    "<<a title>>\ntext", "<<>>", "<< >>", "<<<x>>>", "<<a\nb>>", "a <<b>> c <<d>>", "one ****** two", "one ****** one", "****** one ****** two ******",
    "one ****** ****** two", "one******two******three", "a *** b *** c", "*** a *** b", "a *** *** b", "a***b", "a\n\n***\n\nb\n\n***\n\nc\n", "***\na\n***\nb\n***",
    "* a\n* b\n* c", "- a\n- b", "** a\n* b", "*\n*\n", "  * a\n\t- b\n\n-", "* one\n* two\n* three\n* four\n* five", "1. a\n2. b", "*a* *b* and **c**", "* *a*", "*** a***", "**bold** **bold2** *it*",
    "*\n*", "[name] [address] [x]", "[a\nb]", "[[a] b]", "[]", "P.S. see you", "p. s. yes", "P.P.S later", "p.p. s", "P. P. S. x", "PS no", "text\nP.S.", "Section 1 a Section 2 b",
    "SECTION 1\na\nSECTION 2\nb\nSECTION 3\nc", "Section1Section2Section3Section4", "section 1", "PARAGRAPH 1 a PARAGRAPH 2", "Day 1\nDay 2\nDay 3", "Audience 1. Audience 2", "A\n\nB", "first\n\nsecond\n\nthird",
    "\n\nfirst\n\nsecond", "one\n\n\n\nthree", "one\n\n \n\nthree\n\n\"four", "'\"quoted first\n\nword, second", "one\n\n'two's three\n\nweekend! four", "ALL CAPS TEXT HERE", "ALL CAPS 1 a", "all lower text here", "lower, with comma.", "Mixed Case",
    "NASA and the U.S.A. said OK to ACME-X. I'M A MAN'S dog", "123 456", "one two three four five", "word_a word-b don't", "½ ² x", "می‌روم", "Dr. Smith met Mr. J. Bach at 5 p.m. on Jan. 3. They left.",
    "He said \"Go!\" Then he left. (Why?) Nobody knows... Maybe. Wait!! What?!", "No. 5 is here. No. He came. 3.5 is a number. E.g. this. i.e. that.", "Hello.World. a.b.c. x", "Line one.\nLine two.\n\nLine three", "Is there anything else I can help with?",
    'The end. "Any other questions?"', "any other questions?\"", "#hashtags ##here !bang! #", "aaaa eeee iiii oooo uuuu", "qqqq jjjj zzzz wwww", "a\x1cb\x1dc", "\u00a0\u2003x\u3000", "İstanbul ǅ ß ſ", "line\r\nline two\r\n\r\nthree", "x" * 300,
    "*" * 12, "-" * 5, "\n".join("-" * 3 for _ in range(3)), "Sure! Here it is:\n\n* a\n* b\n\nHope that helps.", "Title: *x*\n\nbody\n\nend", ". . . ", "a . . . b. C", "--- a -- b. -- C", "“He went.” “She stayed.” ‘Yes.’ No", "A.B. Smith. C",
]


def filled(rng: random.Random, words: list[str], count: int, ends=".") -> str:
    text, sentence = [], []
    for index in range(count):
        word = rng.choice(words)
        sentence.append(word.capitalize() if not sentence else word)
        if rng.random() < 0.1 or index == count - 1:
            text.append(" ".join(sentence) + rng.choice(ends))
            sentence = []
        elif rng.random() < 0.05:
            sentence[-1] += ","
    return " ".join(text)


def following(rng: random.Random, kind: str, given: dict, words: list[str]) -> str:
    """An answer that follows the instruction, or nearly."""
    near = rng.choice([-1, 0, 0, 1])
    body = filled(rng, words, rng.randrange(5, 30))
    name = kind.split(":")[1]
    count = next((value for key, value in given.items() if isinstance(value, int) and key != "nth_paragraph"), 3) + near
    match name:
        case "number_words":
            return filled(rng, words, max(1, min(count, 420)))
        case "number_sentences":
            return " ".join(filled(rng, words, 3, ".!?") for _ in range(max(1, min(count, 40))))
        case "existence":
            return body + " " + " ".join(given["keywords"][: max(1, len(given["keywords"]) + near)])
        case "frequency":
            return body + f" {rng.choice([given['keyword'], given['keyword'].upper()])}," * max(0, count)
        case "forbidden_words":
            return body if near else body + " " + given["forbidden_words"][0] + rng.choice(["", "s", "!"])
        case "letter_frequency":
            return given["letter"] * max(1, min(count, 60))
        case "number_paragraphs":
            return rng.choice(["\n***\n", " *** ", "***"]).join(filled(rng, words, 4) for _ in range(max(1, count)))
        case "nth_paragraph_first_word":
            parts = [filled(rng, words, 4) for _ in range(max(1, count))]
            at = min(given["nth_paragraph"], len(parts)) - 1
            parts[at] = rng.choice(["{} ", '"{}, ', "'{}' ", "{}. "]).format(given["first_word"]) + parts[at]
            return rng.choice(["\n\n", "\n\n\n\n"]).join(parts)
        case "number_placeholders":
            return body + " [thing]" * max(0, count)
        case "postscript":
            return body + "\n" + rng.choice([given["postscript_marker"], given["postscript_marker"].replace(".", ". ")]) + " thanks"
        case "number_bullet_lists":
            return "\n".join(rng.choice(["* ", "- ", " * "]) + filled(rng, words, 3) for _ in range(max(1, count)))
        case "number_highlighted_sections":
            return body + rng.choice([" *part*", " **part**"]) * max(0, count)
        case "multiple_sections":
            return "\n".join(f"{given['section_spliter']} {i}\n{filled(rng, words, 4)}" for i in range(max(1, count)))
        case "json_format":
            return json.dumps({"answer": body})
        case "title":
            return f"<<{rng.choice(words)}>>\n{body}"
        case "two_responses":
            return body + "\n******\n" + (body if near else filled(rng, words, 5))
        case "repeat_prompt":
            return given["prompt_to_repeat"][: 400 + near * 400] + "\n" + body
        case "end_checker":
            return body + " " + given["end_phrase"] + ("" if near else rng.choice([".", '"', " ", ""]))
        case "capital_word_frequency":
            return " ".join([filled(rng, words, 5)] + [rng.choice(words).upper() + rng.choice(["", ",", "-ONE"]) for _ in range(max(0, min(count, 40)))])
        case "english_capital":
            return body.upper()
        case "english_lowercase":
            return body.lower()
        case "no_comma":
            return body.replace(",", "")
        case "quotation":
            return f'"{body}"'
        case "response_language":
            return LANGUAGES[given["language"]]
    return body


def answers(prompts: list, novels: Path) -> list[str]:
    rng = random.Random(42)
    words = [word for word in instructions_util.WORD_LIST if len(word) > 1][:400] + ["the", "of", "and", "to", "is"] * 20
    passages = []
    with gzip.open(novels, "rt", encoding="utf-8") as file:
        for line, _ in zip(file, range(30)):
            text = json.loads(line)["text"]
            for _ in range(3):
                start = text.find("\n\n", rng.randrange(len(text) // 2)) + 2
                passages.append(text[start : start + rng.choice([200, 600, 1400])].strip())
    made, kinds = [], {}
    for prompt in prompts:
        for kind, given in zip(prompt["instruction_id_list"], prompt["kwargs"]):
            kinds.setdefault(kind, []).append(given)
    for kind, all_given in sorted(kinds.items()):
        for given in rng.sample(all_given, min(len(all_given), 9)):
            text = following(rng, kind, given, words)
            made.append(text)
            if rng.random() < 0.3:
                made.append(rng.choice(["Sure, here it is:\n", "**Answer**\n\n"]) + text + rng.choice(["", "\n\nLet me know!", "\n*The end*"]))
    # Every exact text that a prompt may ask for, at least once.
    for given in kinds["combination:repeat_prompt"][:8]:
        made.append(given["prompt_to_repeat"].upper())
    return EDGES + list(LANGUAGES.values()) + made + passages


def language(text: str) -> str | None:
    """The language by seven seeds; `any` where it cannot be detected, which counts as followed."""
    found = set()
    for seed in range(7):
        DetectorFactory.seed = seed
        try:
            found.add(langdetect.detect(text))
        except LangDetectException:
            found.add("any")
    return found.pop() if len(found) == 1 else None


def bits(values: list[bool]) -> str:
    return f"{sum(1 << index for index, value in enumerate(values) if value):x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    prompts = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    texts = answers(prompts, arguments.novels)
    # The language is judged by itself; the rest of a verdict is what it would be if the text were in the language.
    langdetect_detect, langdetect.detect = langdetect.detect, lambda text: "en"
    rows, seen = [], set()
    for prompt in prompts:
        for kind, given in zip(prompt["instruction_id_list"], prompt["kwargs"]):
            key = json.dumps([kind, given])
            if kind == "language:response_language" or key in seen:
                continue
            if kind == "keywords:letter_frequency" and not given["letter"].isalpha():
                continue
            seen.add(key)
            assert all(given.values()), given
            example = utils.InputExample(prompt["key"], [kind], prompt["prompt"], [given])
            strict = [utils.test_instruction_following_strict(example, text).follow_all_instructions for text in texts]
            loose = [utils.test_instruction_following_loose(example, text).follow_all_instructions for text in texts]
            rows.append({"kind": kind, "arguments": given, "strict": bits(strict), "loose": bits(loose)})
    langdetect.detect = langdetect_detect
    made_by = f"tools/reference/make_golden_ifeval.py: lm-eval 0.4.13, NLTK {nltk.__version__}"
    verdicts = {"made_by": made_by, "answers": texts, "language": [language(text) for text in texts], "instructions": rows}
    parts = [
        [text, nltk.sent_tokenize(text), nltk.word_tokenize(text)] for text in texts if " " in text or len(text) < 40
    ]
    files = {"ifeval.json": verdicts, "sentences.json": {"made_by": made_by, "texts": parts}}
    print(len(texts), "answers,", len(rows), "instructions,", len(parts), "texts;", {row["kind"] for row in rows}.__len__(), "kinds")
    for kind in sorted(instructions_registry.INSTRUCTION_DICT):
        own = [row for row in rows if row["kind"] == kind]
        print(kind, len(own), sum(int(row["strict"], 16).bit_count() for row in own), sum(int(row["loose"], 16).bit_count() for row in own))
    for name, value in files.items():
        head, body = {key: part for key, part in value.items() if not isinstance(part, list)}, [key for key in value if isinstance(value[key], list)]
        lines = [f"{json.dumps(key)}: {json.dumps(part)}" for key, part in head.items()]
        lines += [f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value[key]) + "\n]" for key in body]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        print(name, len(text.encode()))
        if arguments.check:
            if (GOLDEN / name).read_text() != text:
                sys.exit(f"{name}: differs")
        else:
            (GOLDEN / name).write_text(text)


if __name__ == "__main__":
    main()
