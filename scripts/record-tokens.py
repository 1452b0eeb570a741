#!/usr/bin/env python3
"""Records llama.cpp's token ids of a mixed corpus, for models/tests/text.rs.

    record-tokens.py MODEL.gguf > models/tests/data/tokens-NAME.txt

Needs llama-cpp-python (0.3.36 was used). One JSON object a line: the text, its ids where special tokens in
the text are text (`plain`), where they are parsed (`parsed`), and the ids that llama.cpp puts around every text (`around`).
"""

import json
import random
import sys

from llama_cpp import Llama

# Left out: "</s>". It is a user-defined token of Gemma (HTML), which llama.cpp takes for an end of text by its looks.
TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t",
    " \n \n",
    "Hello",
    " Hello",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "It's what they've said; we'll see, I'd guess you're right, don't ya think?",
    "IT'S WHAT THEY'VE SAID",
    "3.14159 2026-11-22 1,000,000 0x7fff 007 1e-9 12345678901234567890",
    "½ ² ³ ¼ Ⅷ ٣٤٥ ४५ 一二三 ①②",
    "fn main() {\n    let x: u32 = 42;\n    println!(\"{x:>8}\");\n}\n",
    "def f(a, b=None):\n\treturn [i**2 for i in range(a)] if b else {}\n\n\n# end\n",
    "<div class=\"a b\">&amp;nbsp;</div>\r\n<br/>\r\n",
    "SELECT * FROM t WHERE a <> 'x' AND b >= 1; -- comment",
    "https://example.org/a/b?c=d&e=%20#frag user@example.org C:\\dir\\file.txt",
    "😀 😃👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️‍🔥 e\u0301 é ﬁ ™ © →",
    "你好，世界！今天天气怎么样？",
    "こんにちは、世界。カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟ السَّلَامُ عَلَيْكُمْ",
    "שלום עולם",
    "नमस्ते दुनिया, कैसे हैं?",
    "สวัสดีชาวโลก",
    "Привет, мир! Ёжик.",
    "Γειά σου Κόσμε",
    "Zażółć gęślą jaźń; Größe, Straße, Ærø, İstanbul, ığüşöç",
    "a\u00a0b\u2003c\u200bd\u3000e\ufefff",
    "x  y   z    w     v      u       t        s         r          q",
    "a" + " " * 17 + "b" + " " * 33 + "c" + " " * 70,
    "\n" * 5 + "a" + "\n" * 33 + "b" + "\n" * 40,
    "\t" * 3 + "a" + "\t" * 35 + "b",
    "  leading and trailing  ",
    "trailing newline\n",
    "line one\n  indented\n\n    more\n\t\ttabs\n \t mixed \n",
    "....... ,,,, ;;;; !!!!!! ?????? ------- ======= _______ ******* #######",
    "(((([[[[{{{{<<<<>>>>}}}}]]]]))))",
    "$100 €50 £20 ¥1000 50% 1+1=2 a^b ~c |d| `e` \\f \"g\" 'h'",
    "camelCase snake_case kebab-case SCREAMING_CASE dot.case path/case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababab hahahahahaha nonononono",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "A\u030a\u0301 Z̷a̷l̷g̷o̷ \u202eright-to-left\u202c",
    "\u0000\u0001\u0002 control \u007f\u0080\u009f",
    "\ufffd replacement \U0010ffff \ue000 private \U000e0001",
    "▁ lower one eighth ▁▁▁ block ▁x",
    "<0x0A> <0xFF> <0x41>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|im_end|>b <|im_end|> c",
    "<bos>text<eos> <start_of_turn>user\nHi<end_of_turn>\n<unk><pad><mask>",
    "<unused0> <unused99> [multimodal] <start_of_image> <|eot_id|> <s> <u> [INST]",
    "<table><tr><td>cell</td></tr></table> <h1>Title</h1> <code>x</code> <b>bold</b>",
    "<repo_name>a/b<file_sep>c.py\nprint()<|endoftext|>",
    "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𝟘𝟙𝟚 ∑∫√∞≠≤≥ ℝℕℤ ⊂⊃ ∀∃",
    "┌─┐│└┘ ░▒▓█ ♠♥♦♣ ☃☂",
    "One. Two.  Three.   Four\n\nFive\r\nSix\rSeven",
    "1 2 3 12 123 1234 12345 1a2b3c a1 b22 c333",
    " 1 22  333   4444",
    "I'm I'M i'm 'tis 'twas rock'n'roll O'Neill l'été d'accord 'S 'LL 'x",
    "word" * 40,
    "JSON: {\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"\\u00e9\\n\"}}",
]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz     ",
    "ABCabc123 .,;:!?'\"-_()[]{}<>/\\|@#$%^&*+=~`\n\t ",
    " \n\t\r ",
    "0123456789 .,",
    "àéîõüßøåçñ ÀÉÎÕÜ ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя ",
    "一丁七万三上下不与世中你我他的是 ，。",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي ",
    "😀😁😂🤣👍🏽👨👩❤️\u200d ",
    "aé你😀ب \n1.",
]


def corpus():
    """The texts above and 120 seeded random ones."""
    rng = random.Random(20261122)
    random_texts = []
    for i in range(120):
        alphabet = ALPHABETS[i % len(ALPHABETS)]
        random_texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 48))))
    return TEXTS + random_texts


def main():
    model = Llama(model_path=sys.argv[1], vocab_only=True, verbose=False)
    for text in corpus():
        utf8 = text.encode()
        plain = model.tokenize(utf8, add_bos=False, special=False)
        parsed = model.tokenize(utf8, add_bos=False, special=True)
        around = model.tokenize(utf8, add_bos=True, special=False)
        record = {"text": text, "plain": plain}
        if parsed != plain:
            record["parsed"] = parsed
        record["around"] = around[: len(around) - len(plain)]
        print(json.dumps(record, ensure_ascii=True, separators=(",", ":")))


if __name__ == "__main__":
    main()
