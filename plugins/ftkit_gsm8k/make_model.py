"""Trains the tiny model of the GSM8K quickstart from scratch.

    python -m ftkit_gsm8k.make_model --out DIR

The pre-training text is generated here and has three kinds of documents: equations ("12 + 5 = 17"), problems
of two to four steps with solutions in several plain formats, and stories without a question. It contains no
problem of one step, no calculator annotation (``<<12+5=17>>``), no last line ``#### 17``, and no question of
the quickstart's data. The first stage has short documents in few formats. In the second, a document has up to
four problems in one of many formats, so that the model continues in the format of its prompt.

Measured when the shipped model was made (one thread of a machine that was busy with other work): 1.13
million parameters, 3.7 million tokens in 8 minutes and 1.2 million in 10, loss 0.70 per token at the end.
It was made in two runs (the second with --from), so one run of both stages gives other weights.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import _problems as P

SEED = 7
VOCAB = 512
CHUNK = 1000  # documents generated at a time


@dataclass(frozen=True)
class Stage:
    """Rows of `row` tokens, `batch` of them per step; the first `easy` steps have mostly equations."""

    steps: int
    row: int
    batch: int
    easy: int
    peak: float  # share of the learning rate
    falls: bool  # the rate falls to 0 by the end of the stage
    shots: tuple[int, ...]  # problems per document
    wide: bool  # all formats, brackets around repeated sums among them


STAGES = (
    Stage(900, 256, 16, 400, 1.0, False, (1, 2, 2, 3), False),  # teaches arithmetic and the order of steps
    Stage(300, 512, 8, 0, 0.6, True, (1, 2, 3, 4), True),  # teaches to continue in the format of the document
)
FRAMES = [
    ("Question: ", "\nAnswer:"),
    ("Q: ", "\nA:"),
    ("Problem: ", "\nSolution:"),
    ("", "\nSolve:"),
]
MORE_FRAMES = [
    ("#### Problem\n", "\n#### Solution\n"),
    ("<<Question>> ", "\n<<Answer>>"),
]
ENDS = ["The answer is {}.", "Answer: {}", "So it is {}.", "Result: {}", "Final: {}", "= {}", "That makes {}."]
MORE_ENDS = ["** {}", "== {}", "-> {}", "[{}]", "## {}", "@ {}"]
JOINS = [" ", "\n", " Then ", "; ", "\n- "]
NOTES = [("(", ")"), ("[", "]"), ("{", "}"), ("|", "|"), ("*", "*"), ("<", ">")]  # 12+5=(12+5=17)17


def sums(rng: random.Random) -> str:
    """Return a few equations in one style."""
    form = rng.choice(["{} {} {} = {}", "{}{}{}={}", "{} {} {} is {}"])
    lines = []
    while len(lines) < 6:
        op = rng.choice("++--*/")
        left = rng.randint(2, 49) if op == "*" else rng.randint(1, P.LIMIT)
        s = P.Step(left, op, rng.randint(1, P.LIMIT) if op in "+-" else rng.randint(2, 9), "")
        if s.whole:
            lines.append(form.format(s.left, s.op, s.right, s.result))
    return rng.choice(["\n", ", "]).join(lines)


def new_problem(rng: random.Random) -> P.WordProblem:
    while True:
        made = P.problem(rng, rng.choice((2, 2, 3, 3, 4)))
        if P.split_of(made.question) == "pretraining":
            return made


def problems(rng: random.Random, stage: Stage) -> str:
    """Return a few problems, all in one format."""
    frame = rng.choice(FRAMES + MORE_FRAMES * stage.wide)
    end, join = rng.choice(ENDS + MORE_ENDS * stage.wide), rng.choice(JOINS)
    before_end = join if "\n" in join else rng.choice((" ", "\n", join))
    told, equals = rng.random() < 0.6, rng.choice(("{} {} {} = {}", "{}{}{}={}"))
    note = rng.choice(NOTES) if stage.wide and rng.random() < 0.4 else None
    parts = []
    for _ in range(rng.choice(stage.shots)):
        made = new_problem(rng)
        steps = []
        for s in made.steps:
            equation = equals.format(s.left, s.op, s.right, s.result)
            if note:
                sum_ = equals.rsplit("{}", 1)[0].format(s.left, s.op, s.right)
                equation = f"{sum_}{note[0]}{equation}{note[1]}{s.result}"
            steps.append(s.sentence.replace("{=}", equation) + "." if told else equation)
        last = end.format(made.answer)
        parts.append(f"{frame[0]}{made.question}{frame[1]} {join.join(steps)}{before_end}{last}")
    return "\n\n".join(parts)


def document(rng: random.Random, stage: Stage, easy: bool = False) -> str:
    r = rng.random()
    if r < (0.6 if easy else 0.15):
        return sums(rng)
    if r < (0.65 if easy else 0.2):
        return new_problem(rng).question.rsplit(". ", 1)[0] + "."
    return problems(rng, stage)


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE over words; every digit is a token of its own, and so is the space before a number."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([normalizers.Replace("\n", "\n ")])
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'\p{L}+|\p{N}| ?\p{L}+| ?<<|>>| ?#+| ?[^\s\p{L}\p{N}]|\n|\s+(?!\S)|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n")])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(texts, trainer)
    return tok


def packed_rows(tok: Tokenizer, rng: random.Random, stage: Stage, easy: bool) -> torch.Tensor:
    """Return (rows, stage.row) token ids: documents one after another, each from <bos> to <eos>."""
    texts = [document(rng, stage, easy) for _ in range(CHUNK)]
    stream = [i for e in tok.encode_batch(texts) for i in (1, *e.ids, 2)]
    n = len(stream) // stage.row // stage.batch * stage.batch
    rows = torch.tensor(stream[: n * stage.row]).view(n, stage.row)
    return rows[torch.randperm(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--from", dest="start", help="a folder with the model as it was after the first stage")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    shown = P.rows("pretraining", 200, (2, 3, 4), 0)  # so that << >> #### and the newline are tokens
    tok = make_tokenizer([document(rng, STAGES[0]) for _ in range(8000)] + [r["answer"] for r in shown])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    if args.start:
        fast = PreTrainedTokenizerFast.from_pretrained(args.start)
        tok = fast.backend_tokenizer
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    opts = [
        torch.optim.Muon(hidden, lr=args.lr, weight_decay=0.01, ns_steps=4),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    base = [o.param_groups[0]["lr"] for o in opts]

    @torch.compile
    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB).float(), ids[:, 1:].reshape(-1))

    def save() -> None:
        import copy

        whole = copy.deepcopy(model)
        whole.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
        whole.to(torch.bfloat16).save_pretrained(args.out)
        fast.save_pretrained(args.out)

    began, tokens, mean = time.monotonic(), 0, 0.0
    for stage in STAGES[1:] if args.start else STAGES:
        step = 0
        while step < stage.steps:
            for batch in packed_rows(tok, rng, stage, step < stage.easy).split(stage.batch):
                rate = stage.peak * min(1, (step + 1) / 100) * (1 - step / stage.steps if stage.falls else 1)
                for opt, lr in zip(opts, base, strict=True):
                    opt.param_groups[0]["lr"] = lr * rate
                loss = loss_of(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for opt in opts:
                    opt.step()
                    opt.zero_grad()
                step, tokens = step + 1, tokens + batch.numel()
                mean = loss.item() if mean == 0 else 0.98 * mean + 0.02 * loss.item()
                if step == stage.steps:
                    break
            spent = (time.monotonic() - began) / 60
            print(f"step {step} of {stage.steps}, {tokens} tokens, {spent:.1f} minutes, loss {mean:.3f}", flush=True)
        save()
    print(f"done: {tokens} tokens, {(time.monotonic() - began) / 60:.1f} minutes, loss {mean:.3f}")


if __name__ == "__main__":
    main()
