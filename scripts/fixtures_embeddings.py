"""Writes tests/fixtures/embeddings.json: what sentence-transformers computes from checkpoints that it saved itself.

    python scripts/fixtures_embeddings.py

needs `pip install sentence-transformers==6.2.0 transformers==5.24.0 torch` and what scripts/fixtures needs. Weights are
the formula of scripts/fixtures; the tokenizers are trained here on a few sentences.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as t
from safetensors import safe_open
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer import modules as m
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts" / "fixtures"))
from reference import formula  # noqa: E402

os.environ["HF_HUB_OFFLINE"] = "1"
VOCABULARY = 150
QUERY = "Who wrote Faust?"
TEXTS = [
    "Goethe wrote Faust.",
    "Bread needs yeast, water and flour; it rises for an hour before the oven is hot enough to bake it well.",
    "a",
    "Ünïcode — naïve café, 12 345!",
    "The quick brown fox jumps over the lazy dog while the cat sleeps on the warm stones of the old garden wall.",
]
SIZES = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)


# Tokenizers


def trained(tokenizer: Tokenizer, trainer) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS + [QUERY, "query: document: task"], trainer)
    return tokenizer


def word_piece():
    own = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    own.normalizer, own.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    own = trained(own, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False))
    ends = [(token, own.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return t.BertTokenizerFast(tokenizer_object=own, model_max_length=24)


def byte_bpe(special: list[str], start: str | None, end: str):
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 150, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    own = trained(own, trainer)
    ends = [(token, own.token_to_id(token)) for token in {start or end, end}]
    before = f"{start} " if start else ""
    own.post_processor = processors.TemplateProcessing(
        single=f"{before}$A {end}", pair=f"{before}$A {end} {end} $B {end}", special_tokens=ends
    )
    return own


def roberta():
    own = byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>")
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    inputs = ["input_ids", "attention_mask"]
    return t.PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=28, model_input_names=inputs, **names)


def unigram():
    own = Tokenizer(models.Unigram())
    own.normalizer = normalizers.NFKC()
    own.pre_tokenizer, own.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False)
    own = trained(own, trainer)
    ends = [(token, own.token_to_id(token)) for token in ("<s>", "</s>")]
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    inputs = ["input_ids", "attention_mask"]
    return t.PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=20, model_input_names=inputs, **names)


def qwen():
    own = byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|endoftext|>")
    return t.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left", model_max_length=40
    )


def gemma():
    own = byte_bpe(["<pad>", "<eos>", "<bos>", "<unk>"], "<bos>", "<eos>")
    return t.PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", model_max_length=64)


# Checkpoints


def entry(name: str, shape: tuple[int, ...]) -> list | dict:
    # Factors of norms are positive, so that no number depends on a sign alone.
    is_norm = any(part in name.lower() for part in ("norm", "_ln", "norm1", "norm2")) and name.endswith("weight")
    if is_norm:
        return dict(shape=list(shape), dtype="F32", **{"from": 0.5, "to": 1.5})
    return dict(shape=list(shape), dtype="F32", **{"from": -0.3, "to": 0.3})


def fill(model: torch.nn.Module, prefix: str = ""):
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.tensor(np.array(formula(prefix + name, entry(name, tuple(value.shape)))))
    model.load_state_dict(state)


def save(model, tokenizer, folder: str):
    """A checkpoint of transformers, whose tensors are the formula of their names in the file."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    refill(Path(folder) / "model.safetensors")


def refill(file: Path):
    from safetensors.numpy import save_file

    with safe_open(file, "np") as tensors:
        names = {name: entry(name, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()}
    save_file({name: np.array(formula(name, own)) for name, own in names.items()}, file, {"format": "pt"})


def files(folder: Path) -> tuple[dict, dict]:
    texts, weights = {}, {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as tensors:
                weights[name] = {n: entry(n, tuple(tensors.get_slice(n).get_shape())) for n in sorted(tensors.keys())}
        elif path.suffix in (".json", ".jinja"):
            texts[name] = path.read_text()
    return texts, weights


def rounded(values) -> list:
    return [[float(f"{x:.7g}") for x in row] for row in np.asarray(values, dtype=np.float64).tolist()]


def embedder(name, model, tokenizer, after, prompts=None, default=None, cut=None, change=lambda folder: None):
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, base)
        composed = SentenceTransformer(
            modules=[m.Transformer(base), *after], prompts=prompts, default_prompt_name=default, device="cpu"
        )
        composed.save(folder, create_model_card=False)
        folder = Path(folder)
        for file in folder.rglob("*.safetensors"):
            refill(file)
        change(folder)
        loaded = SentenceTransformer(str(folder), device="cpu").float()
        texts, weights = files(folder)
        runs = []
        for options in [{}] + ([{"prompt_name": name} for name in prompts or {}]) + ([{"truncate_dim": cut}] if cut else []):
            vectors = loaded.encode(TEXTS, batch_size=3, **options)
            runs.append(dict(options=options, vectors=rounded(vectors)))
        return dict(name=name, files=texts, weights=weights, texts=TEXTS, runs=runs)


def reranker(name, model, tokenizer, build=None, change=lambda folder: None):
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, base)
        (build(base) if build else CrossEncoder(base, device="cpu")).save(folder, create_model_card=False)
        folder = Path(folder)
        refill(folder / "model.safetensors")
        change(folder)
        loaded = CrossEncoder(str(folder), device="cpu")
        loaded.float()
        texts, weights = files(folder)
        scores = loaded.predict([(QUERY, text) for text in TEXTS], batch_size=3)
        return dict(name=name, files=texts, weights=weights, query=QUERY, texts=TEXTS, scores=rounded([scores])[0])


def yes_or_no(name: str, model) -> dict:
    """Qwen3-Reranker, which sentence-transformers does not save: its authors' code, from their model card."""
    own = byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "yes", "no"], None, "<|endoftext|>")
    own.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left", model_max_length=800
    )
    system = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    with tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, folder)
        loaded = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        texts, weights = files(Path(folder))
        scores = []
        for text in TEXTS:
            pair = f"<Instruct>: {task}\n<Query>: {QUERY}\n<Document>: {text}"
            parts = [tokenizer.encode(part, add_special_tokens=False) for part in (before, pair, after)]
            with torch.no_grad():
                logits = loaded(torch.tensor([sum(parts, [])])).logits[0, -1]
            answers = logits[tokenizer.convert_tokens_to_ids(["no", "yes"])]
            scores.append(answers.softmax(0)[1].item())
        return dict(name=name, files=texts, weights=weights, query=QUERY, texts=TEXTS, scores=rounded([scores])[0])


def as_before(folder: Path):
    """The files of sentence-transformers 2."""
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(dict(word_embedding_dimension=32, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True,
                        pooling_mode_max_tokens=True, pooling_mode_mean_sqrt_len_tokens=False))
    )  # fmt: skip
    (folder / "sentence_bert_config.json").write_text(json.dumps(dict(max_seq_length=12, do_lower_case=True)))
    kinds = json.loads((folder / "modules.json").read_text())
    for kind in kinds:
        kind["type"] = "sentence_transformers.models." + kind["type"].split(".")[-1]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "2_Normalize" / "config.json").unlink()


TEMPLATE = (
    "{% set instruct = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('Judge') %}"
    "<|im_start|>{{ instruct }}\n{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\nanswer:"
)


def logit_score(base: str) -> CrossEncoder:
    transformer = m.Transformer(base, transformer_task="text-generation", processor_kwargs={"chat_template": TEMPLATE})
    return CrossEncoder(modules=[transformer, LogitScore(true_token_id=70, false_token_id=71)], device="cpu")


def cases() -> list[dict]:
    bert = dict(SIZES, max_position_embeddings=40, pad_token_id=0)
    large = dict(SIZES, vocab_size=420)
    offset = dict(max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
    prompts = {"query": "query: ", "document": "document: "}
    distil = dict(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    modern = dict(large, num_hidden_layers=5, local_attention=8, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2)
    qwen3 = dict(large, num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=2, bos_token_id=None, max_position_embeddings=64)
    gemma3 = dict(large, num_key_value_heads=2, head_dim=16, sliding_window=8, num_hidden_layers=7, pad_token_id=0, bos_token_id=2, eos_token_id=1,
                  use_bidirectional_attention=True, query_pre_attn_scalar=12, max_position_embeddings=64)  # fmt: skip
    identity = torch.nn.Identity()
    ways = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    one = dict(num_labels=1)
    return [
        embedder("bert", t.BertModel(t.BertConfig(**bert)), word_piece(), [m.Pooling(32, "mean"), m.Normalize()], prompts, "query", 8),
        embedder("bert as before", t.BertModel(t.BertConfig(**bert)), word_piece(), [m.Pooling(32, "mean"), m.Normalize()], change=as_before),
        embedder("roberta", t.RobertaModel(t.RobertaConfig(**large, **offset)), roberta(), [m.Pooling(32, ways)]),
        embedder("xlm-roberta", t.XLMRobertaModel(t.XLMRobertaConfig(**SIZES, **offset)), unigram(),
                 [m.Pooling(32, "mean", include_prompt=False), m.Dense(32, 16)], prompts),
        embedder("xlm-roberta first token", t.XLMRobertaModel(t.XLMRobertaConfig(**SIZES, **offset)), unigram(),
                 [m.Pooling(32, ["cls", "weightedmean"], include_prompt=False)], prompts),
        embedder("distilbert", t.DistilBertModel(t.DistilBertConfig(**distil)), word_piece(), [m.Pooling(32, "mean")]),
        embedder("modernbert", t.ModernBertModel(t.ModernBertConfig(**modern)), roberta(), [m.Pooling(32, "cls"), m.Normalize()]),
        embedder("nomic_bert", t.NomicBertModel(t.NomicBertConfig(**bert)), word_piece(), [m.Pooling(32, "mean"), m.LayerNorm(32)]),
        embedder("gte", t.GteModel(t.GteConfig(**dict(SIZES, max_position_embeddings=40, type_vocab_size=1))), unigram(), [m.Pooling(32, "cls")]),
        embedder("qwen3", t.Qwen3Model(t.Qwen3Config(**qwen3)), qwen(), [m.Pooling(32, "lasttoken"), m.Normalize()], prompts),
        embedder("gemma3_text", t.Gemma3TextModel(t.Gemma3TextConfig(**gemma3)), gemma(),
                 [m.Pooling(32, "mean"), m.Dense(32, 48, bias=False, activation_function=identity),
                  m.Dense(48, 32, bias=False, activation_function=identity), m.Normalize()], prompts, None, 16),
        reranker("bert", t.BertForSequenceClassification(t.BertConfig(**bert, **one)), word_piece()),
        reranker("roberta", t.RobertaForSequenceClassification(t.RobertaConfig(**large, **offset, **one)), roberta()),
        reranker("distilbert", t.DistilBertForSequenceClassification(t.DistilBertConfig(**distil, **one)), word_piece()),
        reranker("modernbert", t.ModernBertForSequenceClassification(t.ModernBertConfig(**modern, **one, classifier_pooling="mean")), roberta()),
        reranker("gte", t.GteForSequenceClassification(t.GteConfig(**dict(SIZES, max_position_embeddings=40, type_vocab_size=1), **one)), unigram()),
        reranker("nomic_bert", t.NomicBertForSequenceClassification(t.NomicBertConfig(**bert, **one)), word_piece()),
        reranker("qwen3", t.Qwen3ForSequenceClassification(t.Qwen3Config(**qwen3, **one)), qwen()),
        reranker("qwen3 logits", t.Qwen3ForCausalLM(t.Qwen3Config(**qwen3)), qwen(), logit_score),
        yes_or_no("qwen3 reranker", t.Qwen3ForCausalLM(t.Qwen3Config(**dict(qwen3, max_position_embeddings=1024)))),
    ]  # fmt: skip


if __name__ == "__main__":
    path = ROOT / "tests" / "fixtures" / "embeddings.json"
    with open(path, "w") as file:
        json.dump(dict(cases=cases()), file, ensure_ascii=False)
        file.write("\n")
