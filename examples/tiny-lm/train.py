"""Trains a small Llama-architecture language model on `corpus.txt`, on a CPU, in about a minute.

By hand:     python train.py
By a runner: the runner sets GROUND_CHECKPOINT_DIR, GROUND_OUTPUT_DIR, GROUND_RESUME_FROM, GROUND_RUN_ID and
             GROUND_ATTEMPT; all are optional. Killed at any moment, the next start goes on from the newest complete
             checkpoint and sees exactly the data it would have seen. SIGTERM checkpoints and exits 143.
The result is a folder in the Hugging Face layout that any Llama-capable engine loads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
from model import Params, Shape, forward, hf_config, init, loss
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
BOS, EOS = "<s>", "</s>"
# A message is continued, not answered: this is a base model. Each message is a line, as each verse of the corpus is.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
EXIT_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Optimizer:
    """AdamW with linear warm-up and a cosine to a tenth of the peak rate; gradients clipped to norm 1."""

    peak_rate: float
    steps: int
    warmup: int = 20
    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.1
    eps: float = 1e-8

    def rate(self, step: jax.Array) -> jax.Array:
        done = jnp.clip((step - self.warmup) / max(1, self.steps - self.warmup), 0.0, 1.0)
        cosine = 0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return self.peak_rate * jnp.minimum((step + 1) / self.warmup, 1.0) * cosine

    def apply(self, params: Params, grads: Params, mu: Params, nu: Params, step: jax.Array) -> tuple[Params, ...]:
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
        scale, rate, at = jnp.minimum(1.0, 1.0 / (norm + 1e-6)), self.rate(step), step + 1
        new_params, new_mu, new_nu = {}, {}, {}
        for name, param in params.items():
            grad = grads[name] * scale
            new_mu[name] = self.beta1 * mu[name] + (1 - self.beta1) * grad
            new_nu[name] = self.beta2 * nu[name] + (1 - self.beta2) * grad * grad
            update = (new_mu[name] / (1 - self.beta1**at)) / (jnp.sqrt(new_nu[name] / (1 - self.beta2**at)) + self.eps)
            # Matrices decay; norms (vectors) do not.
            decay = self.decay if param.ndim == 2 else 0.0
            new_params[name] = param - rate * (update + decay * param)
        return new_params, new_mu, new_nu


@partial(jax.jit, static_argnums=(5, 6), donate_argnums=(0, 1, 2))
def train_step(
    params: Params, mu: Params, nu: Params, tokens: jax.Array, step: jax.Array, shape: Shape, opt: Optimizer
) -> tuple[jax.Array, Params, Params, Params]:
    value, grads = jax.value_and_grad(loss)(params, tokens, shape)
    return value, *opt.apply(params, grads, mu, nu, step)


def make_tokenizer(text: str, vocab: int) -> Tokenizer:
    """A byte-level BPE learned from the text: any string round-trips, there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def make_data(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the chapters, each between begin and end tokens: the first 95 % to train on, the tail held out."""
    ids: list[int] = []
    for chapter in text.split("\n\n"):
        ids += [*tokenizer.encode(chapter.strip() + "\n").ids, tokenizer.token_to_id(EOS)]
    cut = len(ids) * 95 // 100
    return np.asarray(ids[:cut], dtype=np.int32), np.asarray(ids[cut:], dtype=np.int32)


def batch_at(data: np.ndarray, step: int, args: argparse.Namespace) -> np.ndarray:
    """[batch, length + 1] token ids. A function of seed and step alone, so a resumed run sees the same data."""
    rng = np.random.default_rng([args.seed, step])
    starts = rng.integers(0, len(data) - args.length - 1, args.batch)
    return np.stack([data[start : start + args.length + 1] for start in starts])


def evaluate(params: Params, held_out: np.ndarray, shape: Shape, length: int) -> float:
    """Mean loss in nats per token over the held-out tail, in windows of `length`."""
    count = (len(held_out) - 1) // length
    windows = np.stack([held_out[i * length : i * length + length + 1] for i in range(count)])
    measure = jax.jit(partial(loss, shape=shape))
    return float(np.mean([measure(params, windows[i : i + 1]) for i in range(count)]))


class Run:
    """One training run: its data, its state, and how to save and restore them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        text = args.corpus.read_text(encoding="utf-8")
        self.shape = Shape(vocab=args.vocab, width=args.width, layers=args.layers, context=args.length)
        # What a checkpoint must agree with to be continued; the number of steps may change between starts.
        recipe = [asdict(self.shape), args.seed, args.batch, hashlib.sha256(text.encode()).hexdigest()]
        self.recipe = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        self.step, self.last_loss, self.trained_s = 0, float("nan"), 0.0
        saved = checkpoints.newest(args.checkpoint_dir, args.resume_from)
        if saved is None:
            self.tokenizer = make_tokenizer(text, args.vocab)
            self.params = init(self.shape, args.seed)
            self.mu = {name: jnp.zeros_like(value) for name, value in self.params.items()}
            self.nu = {name: jnp.zeros_like(value) for name, value in self.params.items()}
        else:
            self._restore(*saved)
        self.data, self.held_out = make_data(text, self.tokenizer)

    def _restore(self, manifest: dict[str, Any], files: dict[str, bytes]) -> None:
        if manifest["recipe"] != self.recipe:
            sys.exit(
                f"error: checkpoint step {manifest['step']} was made with another corpus, seed or model size\n"
                "hint: use its settings again, or an empty --checkpoint-dir"
            )
        self.tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tensors = load_tensors(files["state.safetensors"])
        self.params, self.mu, self.nu = (
            {name.split("/", 1)[1]: jnp.asarray(v) for name, v in tensors.items() if name.startswith(part)}
            for part in ("params/", "mu/", "nu/")
        )
        self.step = manifest["step"]
        self.last_loss, self.trained_s = manifest["metrics"]["loss"], manifest["metrics"]["trained_s"]
        print(f"resumed from step {self.step}", flush=True)

    def checkpoint(self) -> None:
        parts = {"params": self.params, "mu": self.mu, "nu": self.nu}
        tensors = {f"{part}/{name}": np.asarray(v) for part, t in parts.items() for name, v in t.items()}
        files = {"state.safetensors": save_tensors(tensors), "tokenizer.json": self.tokenizer.to_str().encode()}
        about = {
            "recipe": self.recipe,
            "metrics": {"loss": self.last_loss, "trained_s": round(self.trained_s, 3)},
            "run_id": os.environ.get("GROUND_RUN_ID", ""),
            "attempt": os.environ.get("GROUND_ATTEMPT", ""),
        }
        checkpoints.save(self.args.checkpoint_dir, self.step, files, about)
        print(f"checkpoint {checkpoints.folder_name(self.step)}", flush=True)

    def train(self) -> None:
        """Steps until done. SIGTERM is answered between two steps, never inside one."""
        args, stop = self.args, []
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        opt = Optimizer(peak_rate=args.rate, steps=args.steps)
        saved_at, mark, mark_step = self.step, time.monotonic(), self.step
        while self.step < args.steps and not stop:
            started = time.monotonic()
            tokens, step = jnp.asarray(batch_at(self.data, self.step, args)), jnp.asarray(self.step)
            value, self.params, self.mu, self.nu = train_step(
                self.params, self.mu, self.nu, tokens, step, self.shape, opt
            )
            self.last_loss = float(value)
            self.step += 1
            self.trained_s += time.monotonic() - started
            if self.step % args.log_every == 0 or self.step == args.steps:
                now = time.monotonic()
                rate = (self.step - mark_step) * args.batch * args.length / (now - mark)
                print(f"step {self.step}/{args.steps} loss {self.last_loss:.2f} tok/s {rate:.0f}", flush=True)
                mark, mark_step = now, self.step
            if self.step % args.checkpoint_every == 0 or self.step == args.steps:
                self.checkpoint()
                saved_at = self.step
        if stop:
            if self.step > saved_at:
                self.checkpoint()
            print(f"terminated at step {self.step}", flush=True)
            sys.exit(EXIT_TERMINATED)

    def export(self) -> None:
        """Writes the Hugging Face layout and metrics.json, the weights last."""
        out: Path = self.args.output_dir
        out.mkdir(parents=True, exist_ok=True)
        eval_loss = evaluate(self.params, self.held_out, self.shape, self.args.length)
        bos, eos = self.tokenizer.token_to_id(BOS), self.tokenizer.token_to_id(EOS)
        metrics = {
            "loss": round(self.last_loss, 4),
            "eval_loss": round(eval_loss, 4),
            "eval_perplexity": round(float(np.exp(eval_loss)), 2),
            "eval_bits_per_byte": round(self._bits_per_byte(eval_loss), 3),
            "steps": self.step,
            "tokens": self.step * self.args.batch * self.args.length,
            "seconds": round(self.trained_s, 1),
            "parameters": sum(value.size for value in self.params.values()),
        }
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": self.shape.context,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        sampling = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
        texts = {
            "config.json": hf_config(self.shape, bos, eos),
            "generation_config.json": sampling,
            "tokenizer_config.json": tokenizer_config,
            "metrics.json": metrics,
        }
        for name, content in texts.items():
            checkpoints.write_atomically(out / name, json.dumps(content, indent=2).encode() + b"\n")
        checkpoints.write_atomically(out / "tokenizer.json", self.tokenizer.to_str(pretty=True).encode())
        weights = {name: np.asarray(value) for name, value in self.params.items()}
        # Transformers refuses safetensors files that do not say which framework's layout they follow.
        checkpoints.write_atomically(out / "model.safetensors", save_tensors(weights, metadata={"format": "pt"}))
        print(f"wrote {out}: {json.dumps(metrics)}", flush=True)

    def _bits_per_byte(self, eval_loss: float) -> float:
        """The held-out loss per byte of text: comparable between vocabularies, as loss per token is not."""
        return eval_loss / np.log(2) * len(self.held_out) / len(self.tokenizer.decode(self.held_out.tolist()).encode())

    def sample(self, prompt: str, count: int) -> str:
        """At most `count` greedy tokens after the prompt, without a cache: slow, but what engines are tested by."""
        ids, length = self.tokenizer.encode(prompt).ids, self.shape.context
        start = len(ids)
        # Attention is causal, so what pads the end changes nothing before it, and one compiled shape serves all steps.
        logits = jax.jit(partial(forward, shape=self.shape))
        for _ in range(min(count, length - len(ids))):
            window = np.zeros((1, length), dtype=np.int32)
            window[0, : len(ids)] = ids
            token = int(jnp.argmax(logits(self.params, window)[0, len(ids) - 1]))
            if token == self.tokenizer.token_to_id(EOS):
                break
            ids.append(token)
        return str(self.tokenizer.decode(ids[start:]))


def parse_args() -> argparse.Namespace:
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2, help="sequences per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence; also the served context")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.txt")
    parser.add_argument("--checkpoint-dir", type=Path, default=env.get("GROUND_CHECKPOINT_DIR") or "checkpoints")
    parser.add_argument("--output-dir", type=Path, default=env.get("GROUND_OUTPUT_DIR") or "output")
    parser.add_argument("--resume-from", type=Path, default=env.get("GROUND_RESUME_FROM") or None)
    parser.add_argument("--sample", metavar="PROMPT", action="append", default=[], help="continue it at the end")
    parser.add_argument("--sample-tokens", type=int, default=60, help="greedy tokens per sample")
    args = parser.parse_args()
    heads = Shape.__dataclass_fields__["heads"].default
    if args.width % (2 * heads):
        parser.error(f"--width {args.width} is not a multiple of {2 * heads}: {heads} heads of an even size")
    return args


def main() -> None:
    args = parse_args()
    run = Run(args)
    run.train()
    run.export()
    for prompt in args.sample:
        text = run.sample(prompt, args.sample_tokens)
        print("sample", json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
