"""Writes tests/fixtures/tokenizers.json: small vocabularies of every kind but tokenizer.json, and what
the libraries that they are made for encode with them.

Run it with a Python that has transformers, tokenizers, sentencepiece, tiktoken and mistral_common.
"""

import base64
import collections
import io
import json
import pathlib
import re
import tempfile
import unicodedata

import sentencepiece
import tiktoken
import tokenizers
import transformers
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEXTS = [
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog. It's the fox's day, they've won & we'll see!",
    " leading and trailing  ",
    "runs   of    spaces\t\ttabs\n\nlines\r\nreturns\r \n end",
    "Zürich, naïve café, Straße; e\u0301 a\u0308 decomposed, \u00e9 \u00e4 composed, ﬁne ﬂow, ①②, ＡＢＣ",
    "Привет, мир! Как дела? Ёжик в тумане.",
    "Γειά σου Κόσμε, τι κάνεις σήμερα;",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך? נִקּוּד",
    "नमस्ते दुनिया, क्या हाल है? क्षत्रिय",
    "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง",
    "你好,世界!今天天气怎么样?中文English混合",
    "こんにちは世界。カタカナとひらがな、漢字。",
    "안녕하세요 세계! 오늘 어때요?",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇭 ❤️ 😀😀 emoji",
    "control \x00\x01\x1b[0m\x7f\u200b\u2028\ufeff\ue000 marks",
    "fn main() {\r\n\tlet x = vec![1, 2, 3];\n    // done\n\treturn x[0] + 0x1F;\n}\n",
    "1 12 123 1234 12345678901234567890 3.14159 1,000,000 ½ ²³ ٣٤",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa abababababab",
    "CamelCaseIDENTIFIER_snake_case HTTPServer iPhone's don'T I'LL",
    "\n\n\n",
    "   \n   x   ",
    "▁ is the mark ▁▁ itself<0x41>",
    "\U0001f9ff\U00020000\U0010fffd",
    "hello<|end|>world <|end|> <s>again</s>  x<tool>y",
]
# The training text of the vocabularies; other scripts become bytes or the unknown piece.
CORPUS = TEXTS[3:11] + TEXTS[13:16] + TEXTS[18:23]
SPECIAL = ["<|end|>", "<tool>"]

KINDS = []


def kind(name, files, encode, decode=None, more=(), special=None):
    """Files as text or bytes; `encode` gives ids, `decode` text, or none where ours may differ."""
    cases = []
    for text in [*TEXTS, *more]:
        ids = list(encode(text))
        case = {"ids": ids}
        if special:
            case["with_special"] = list(special(text))
        if decode:
            case["decoded"] = decode(ids)
            if case["decoded"] == text:
                case["decoded"] = True
        cases.append(case)
    contents = {
        file: {"base64": base64.b64encode(content).decode()} if isinstance(content, bytes) else content
        for file, content in files.items()
    }
    KINDS.append({"name": name, "files": contents, "more": list(more), "cases": cases})


def config(**fields):
    return json.dumps(fields)


def added(tokens):
    return {
        str(id): {"content": token, "special": special, "normalized": False}
        for id, (token, special) in tokens.items()
    }


def segments(text, tokens):
    """The text between added tokens, and the added tokens."""
    if not tokens:
        return [text] if text else []
    pattern = "(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")"
    return [part for part in re.split(pattern, text) if part]


# sentencepiece


def train(**options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=out,
        hard_vocab_limit=False,
        minloglevel=2,
        max_sentencepiece_length=8,
        **options,
    )
    model = proto.ModelProto.FromString(out.getvalue())
    # The file was deleted.
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    return model


def sentencepiece_kind(name, model, fields=None, names=(), once=False, file="tokenizer.model"):
    """`names` are tokens that the config adds to the control pieces; `once` is the opposite of `legacy`."""
    whole = model.SerializeToString()
    first = sentencepiece.SentencePieceProcessor(model_proto=whole)
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.add_dummy_prefix and not once
    later = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    tokens = {p.piece: i for i, p in enumerate(model.pieces) if p.type in (2, 3)}
    size = len(model.pieces)
    tokens |= {token: size + i for i, token in enumerate(names)}
    listed = {size + i: (token, token != "<tool>") for i, token in enumerate(names)}
    unknown = first.unk_id()

    def encode(text):
        ids, at = [], 0
        for part in segments(text, tokens):
            if part in tokens:
                ids.append(tokens[part])
            else:
                ids += (first if at == 0 else later).encode(part)
            at += len(part)
        return ids

    def decode(ids):
        if unknown in ids or any(id >= size or first.is_control(id) for id in ids):
            # The libraries decode these tokens differently.
            return None
        return first.decode(ids)

    def special(text):
        adds = (fields or {}).get("tokenizer_class") != "Ernie4_5_Tokenizer"
        return ([first.bos_id()] if (fields or {}).get("add_bos_token", adds) else []) + encode(text)

    files = {file: whole, "tokenizer_config.json": config(**(fields or {}), added_tokens_decoder=added(listed))}
    kind(name, files, encode, decode, special=special)


RULES = "".join(
    f"{' '.join(f'{ord(c):X}' for c in source)}\t{' '.join(f'{ord(c):X}' for c in target)}\n"
    for source, target in [
        ("ﬁ", "fi"),
        ("ﬂ", "fl"),
        ("①", "1"),
        ("Ａ", "A"),
        ("Ｂ", "B"),
        ("\t", " "),
        ("\n", " "),
        ("e\u0301", "é"),
        ("a\u0308", "ä"),
        ("½", "1 2"),
        ("\u200b", ""),
        ("ß", "ss"),
        ("안", "an"),
        ("\U0001f600", ":-)"),
    ]
)


def sentencepieces():
    identity = {"normalization_rule_name": "identity"}
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(RULES)
        rules.flush()
        mapped = train(
            vocab_size=330,
            model_type="unigram",
            normalization_rule_tsv=rules.name,
            user_defined_symbols=["fox", "▁▁", "  ", "12"],
            control_symbols=["<|ctl|>"],
        )
    sentencepiece_kind("unigram with a map of characters", mapped, {"add_bos_token": False}, file="spiece.model")
    sentencepiece_kind(
        "unigram with bytes",
        train(vocab_size=560, model_type="unigram", byte_fallback=True, remove_extra_whitespaces=False, **identity),
        {"tokenizer_class": "InternLM3Tokenizer"},
        SPECIAL,
    )
    sentencepiece_kind(
        "bpe with bytes",
        train(
            vocab_size=600,
            model_type="bpe",
            byte_fallback=True,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            **identity,
        ),
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
        SPECIAL,
        once=True,
    )
    plain = train(
        vocab_size=560,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["▁▁", "▁▁▁", "the", "<tool>"],
        **identity,
    )
    sentencepiece_kind("bpe without a prefix", plain, {"tokenizer_class": "BaichuanTokenizer"})
    suffix = train(
        vocab_size=330, model_type="bpe", treat_whitespace_as_suffix=True, split_by_whitespace=False, **identity
    )
    sentencepiece_kind("bpe with spaces as suffixes", suffix, {"legacy": True}, file="sentencepiece.bpe.model")
    unused = train(vocab_size=360, model_type="bpe", **identity)
    ties = [piece for piece in unused.pieces if piece.type == 1 and len(piece.piece) > 1]
    for i, piece in enumerate(ties):
        if i % 5 == 1:
            piece.type = proto.ModelProto.SentencePiece.UNUSED
        # Ranks that several pieces share.
        piece.score = float(-(i // 4))
    fields = {"tokenizer_class": "Ernie4_5_Tokenizer"}
    sentencepiece_kind("bpe with unused pieces and equal ranks", unused, fields)


# tiktoken


def ranks(size):
    """A byte-level BPE as tokens in the order of their ranks."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    decoder = {c: b for b, c in bytes_to_unicode().items()}
    merged = [bytes(decoder[c] for c in token) for token in sorted(model.get_vocab(), key=model.token_to_id)]
    merged = [token for token in merged if len(token) > 1]
    # A token that no merges form, which is found as a whole only, and one that ends within a character.
    return [bytes([b]) for b in range(256)] + merged + ["tumane".encode(), "ж".encode()[:1] + b"?"]


PATTERNS = {
    "qwen": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    # The pattern of tiktoken itself.
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "kimi": "|".join(
        [
            r"""[\p{Han}]+""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}


def tiktoken_kind(name, file, pattern, special, tokens, normalize=False, fields=None):
    base = len(tokens)
    encoding = tiktoken.Encoding(
        name,
        pat_str=PATTERNS[pattern],
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={token: base + i for i, token in enumerate(special(base))},
    )

    def encode(text):
        text = unicodedata.normalize("NFC", text) if normalize else text
        return encoding.encode(text, allowed_special="all")

    lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    files = {file: lines, "tokenizer_config.json": config(**(fields or {}))}
    texts = [
        "<|im_start|>user\nhi<|im_end|><|extra_7|>",
        "<|system|>x<|end|><|dummy_id_12|>",
        "[BOS]a<|reserved_token_%d|>" % (base + 3),
    ]
    kind(name, files, encode, encoding.decode, texts)


def tiktokens():
    tokens = ranks(420)
    extra = [f"<|extra_{i}|>" for i in range(205)]
    tiktoken_kind(
        "qwen.tiktoken",
        "qwen.tiktoken",
        "qwen",
        lambda base: ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra],
        tokens,
        normalize=True,
    )
    tiktoken_kind(
        "hy.tiktoken",
        "hy.tiktoken",
        "qwen",
        lambda base: ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *extra],
        tokens,
        normalize=True,
    )
    cl100k = (
        ["<|dummy_id_2|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|system|>"]
        + ["<|user|>", "<|assistant|>", "<|dummy_id_0|>", "<|dummy_id_1|>", "<|end|>"]
        + [f"<|dummy_id_{i}|>" for i in range(3, 12)]
        + ["<|endofprompt|>"]
        + [f"<|dummy_id_{11 + i}|>" for i in range(1, 76)]
    )
    tiktoken_kind("cl100k_base.tiktoken", "cl100k_base.tiktoken", "cl100k", lambda base: cl100k, tokens)
    base = len(tokens)
    named = {
        base: ("[BOS]", True),
        base + 1: ("[EOS]", True),
        base + 2: ("<|end|>", True),
        base + 5: ("<tool>", False),
    }
    tiktoken_kind(
        "tiktoken.model",
        "tiktoken.model",
        "kimi",
        lambda base: [named.get(id, (f"<|reserved_token_{id}|>",))[0] for id in range(base, base + 256)],
        tokens,
        fields={"added_tokens_decoder": added(named), "bos_token": "[BOS]"},
    )
    named = {base: ("<s>", True), base + 1: ("<|end|>", True)}
    tiktoken_kind(
        "tokenizer.model of tiktoken",
        "tokenizer.model",
        "cl100k",
        lambda base: ["<s>", "<|end|>"],
        tokens,
        fields={"added_tokens_decoder": added(named)},
    )
    tekken(tokens)


def tekken(tokens):
    def entry(rank, token):
        return {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}

    head = {
        "pattern": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) + 32 - 10,
        "default_num_special_tokens": 32,
        "version": "v3",
    }
    vocabulary = [entry(rank, token) for rank, token in enumerate(tokens)]
    listed = [
        {"rank": i, "token_str": token, "is_control": True}
        for i, token in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"])
    ]
    for name, special in [("tekken.json", listed), ("tekken.json without special tokens", None)]:
        contents = {"config": head, "vocab": vocabulary} | ({"special_tokens": special} if special else {})
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tekken.json"
            path.write_text(json.dumps(contents))
            reference = Tekkenizer.from_file(path)

        names = {reference.id_to_piece(id): id for id in range(reference.num_special_tokens)}

        def encode(text):
            ids = []
            for part in segments(text, names):
                ids += [names[part]] if part in names else reference.encode(part, bos=False, eos=False)
            return ids

        def decode(ids):
            return None if any(id < reference.num_special_tokens for id in ids) else reference.decode(ids)

        texts = ["<s>[INST]hi[/INST]</s><SPECIAL_30>"]
        kind(name, {"tekken.json": json.dumps(contents)}, encode, decode, texts)


# Lists


def lists():
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    merges = ["#version: 0.2"] + [" ".join(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    vocabulary = dict(sorted(model.get_vocab().items(), key=lambda item: item[1])) | {"<|endoftext|>": 400}
    pairs = {"vocab.json": json.dumps(vocabulary, ensure_ascii=False), "merges.txt": "\n".join(merges) + "\n"}
    for name in ["GPT2Tokenizer", "Qwen2Tokenizer"]:
        fields = {
            "tokenizer_class": name,
            "added_tokens_decoder": added(
                {400: ("<|endoftext|>", True), 401: ("<|end|>", True), 402: ("<tool>", False)}
            ),
        }
        transformers_kind("vocab.json of " + name, name, pairs | {"tokenizer_config.json": config(**fields)})

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for lower in [True, False]:
        words = re.findall(r"\w+", " ".join(CORPUS).lower() if lower else " ".join(CORPUS))
        counts = collections.Counter(
            ("##" if i else "") + word[i : i + n]
            for word in words
            for n in range(1, 5)
            for i in range(len(word) - n + 1)
        )
        common = sorted(counts, key=lambda piece: (-counts[piece], piece))[:320]
        lines = pieces + sorted({*common, *".,;!?'&:/()[]{}"})
        fields = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        files = {"vocab.txt": "\n".join(lines) + "\n", "tokenizer_config.json": config(**fields)}
        transformers_kind(f"vocab.txt, {'lower' if lower else 'any'} case", "BertTokenizer", files)
    plamo()
    world(ranks(420))


def transformers_kind(name, cls, files):
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (pathlib.Path(folder) / file).write_text(content, encoding="utf-8")
        reference = getattr(transformers, cls).from_pretrained(folder)
    kind(
        name,
        files,
        lambda text: reference.encode(text, add_special_tokens=False),
        lambda ids: reference.decode(ids, clean_up_tokenization_spaces=False),
        special=lambda text: reference.encode(text),
    )


def plamo():
    model = train(vocab_size=320, model_type="unigram", normalization_rule_name="identity", add_dummy_prefix=False)
    rows = [
        ["<|plamo:unk|>", 0.0, "UNKNOWN"],
        ["<|plamo:bos|>", 0.0, "CONTROL"],
        ["<|plamo:eos|>", 0.0, "CONTROL"],
        ["<|plamo:pad|>", 0.0, "CONTROL"],
    ]
    rows += [[f"<0x{byte:02X}>", 0.0, "BYTE"] for byte in range(256)]
    pieces = {p.piece.replace("▁", " "): p.score for p in model.pieces if p.type == 1}
    rows += [[piece, round(score, 4), "NORMAL"] for piece, score in pieces.items()]
    # Equal sums: the longer first piece wins.
    rows += [["aa", -3.0, "NORMAL"], ["aaa", -4.5, "NORMAL"], ["aaaa", -6.0, "NORMAL"]]
    rows = [row for i, row in enumerate(rows) if row[0] not in [r[0] for r in rows[:i]]]
    pieces = {piece: (id, round(score * 1e4)) for id, (piece, score, kind) in enumerate(rows) if kind != "BYTE"}
    special = {piece: id for id, (piece, _, kind) in enumerate(rows) if kind in ("UNKNOWN", "CONTROL")}
    bytes_at = [piece for piece, _, _ in rows].index("<0x00>")
    longest = max(map(len, pieces))

    def cut(text):
        """The best split from each character on; of equal ones, the longest first piece."""
        best = [(0, 0, [])] * (len(text) + 1)
        for i in reversed(range(len(text))):
            ways = []
            for length in range(min(longest, len(text) - i), 0, -1):
                if text[i : i + length] in pieces:
                    id, score = pieces[text[i : i + length]]
                    ways.append((best[i + length][0] + score, length, [id]))
            ways.append((best[i + 1][0] - 10_000_000, 1, [bytes_at + b for b in text[i].encode()]))
            best[i] = max(ways, key=lambda way: way[0])
        ids, i = [], 0
        while i < len(text):
            ids += best[i][2]
            i += best[i][1]
        return ids

    def encode(text):
        return [id for part in segments(text, special) for id in ([special[part]] if part in special else cut(part))]

    def decode(ids):
        parts = [bytes([id - bytes_at]) if bytes_at <= id < bytes_at + 256 else rows[id][0].encode() for id in ids]
        return b"".join(parts).decode("utf-8", errors="replace")

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    kind("tokenizer.jsonl", {"tokenizer.jsonl": lines}, encode, decode, ["a<|plamo:eos|>b"])


def world(tokens):
    tokens = [bytes([b]) for b in range(256)] + sorted(
        set(tokens[256:]) | {b"\r\n", b"\t\t", b"'", b'"', b"it's", b"\\n"}
    )
    tokens = list(dict.fromkeys(tokens))

    def literal(token):
        try:
            return repr(token.decode())
        except UnicodeDecodeError:
            return repr(token)

    lines = "".join(f"{id} {literal(token)} {len(token)}\n" for id, token in enumerate(tokens, 1))
    ids = {token: id for id, token in enumerate(tokens, 1)}
    longest = max(map(len, tokens))

    def encode(text):
        found = []
        for part in segments(text, ["<|endoftext|>"]):
            rest = part.encode()
            while rest:
                if part == "<|endoftext|>":
                    found.append(0)
                    break
                length = next(n for n in range(min(longest, len(rest)), 0, -1) if rest[:n] in ids)
                found.append(ids[rest[:length]])
                rest = rest[length:]
        return found

    def decode(found):
        return b"".join(b"<|endoftext|>" if id == 0 else tokens[id - 1] for id in found).decode(
            "utf-8", errors="replace"
        )

    kind("rwkv_vocab_v20230424.txt", {"rwkv_vocab_v20230424.txt": lines}, encode, decode, ["a<|endoftext|>b"])


def main():
    sentencepieces()
    tiktokens()
    lists()
    path = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "tokenizers.json"
    fixture = {"texts": TEXTS, "kinds": KINDS}
    path.write_text(
        json.dumps(fixture, ensure_ascii=False, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n",
        encoding="utf-8",
    )
    for entry in KINDS:
        print(f"{entry['name']}: {len(entry['cases'])} texts, {len(json.dumps(entry['files']))} bytes")
    print(path.stat().st_size, "bytes")


main()
