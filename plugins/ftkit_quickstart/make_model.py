"""Trains the quickstart's tiny base model from scratch.

    python -m ftkit_quickstart.make_model --out DIR

The text is generated here too: dialogues between invented people (some of them
followed by questions about single facts and by quotes), lists, and short tales.
Most names and places are invented, so that the model must copy them from the
text.  The text contains no summary, no "Summary:" cue, and none of the names,
places and phrasings that are held out for the test split.

Measured when the shipped model was made (two AMD Zen 4 cores, bf16 autocast,
torch.compile, Muon): 1.89 million parameters, 5844 steps, 24.4 million tokens,
38.0 minutes, training loss 0.80 per token at the end.  The length is given in
minutes; --steps 5844 fixes it for any machine, though the learning rate then
follows the steps and the weights will not be bit-identical.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import _dialogues as D

SEED = 11
VOCAB = 1024
ROW = 192  # tokens per packed row
BATCH = 24  # rows per step

# --------------------------------------------------------------- invented words

ONSETS = [
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "ch", "cl", "dr",
    "fl", "gr", "kr", "pl", "pr", "sh", "st", "th", "tr",
]  # fmt: skip
VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ie", "oa"]
CODAS = ["", "", "", "n", "l", "r", "s", "m", "k", "t", "nd", "rt", "ck"]
PLACE_ENDS = [
    "ton", "ville", "burg", "ham", "stad", "ford", "wick", "berg", "mont", "dale", "ia", "a", "o", "e", "na", "ra",
    "lona", "port", "land", "field",
]  # fmt: skip
FORBIDDEN = set(D.HELD_NAMES) | set(D.HELD_PLACES)


def letter_chain(words: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each two letters in these words, the letters that follow them."""
    chain: dict[str, list[str]] = {}
    for w in words:
        w = "^^" + w.lower() + "$"
        for i in range(len(w) - 2):
            chain.setdefault(w[i : i + 2], []).append(w[i + 2])
    return chain


NAME_CHAIN, PLACE_CHAIN = letter_chain(D.NAMES), letter_chain(D.PLACES)


def invent(rng: random.Random, place: bool) -> str:
    """Return a new name of a place or a person; never one that is held out for the test split."""
    while True:
        if rng.random() < 0.5:
            chain, w = PLACE_CHAIN if place else NAME_CHAIN, "^^"
            while not w.endswith("$"):
                w += rng.choice(chain[w[-2:]])
            w = w[2:-1]
        else:
            w = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice([1, 1, 2])))
            w += rng.choice(ONSETS) + rng.choice(PLACE_ENDS) if place else rng.choice(CODAS)
        if 3 <= len(w) <= 10 and w.capitalize() not in FORBIDDEN:
            return w.capitalize()


def name(rng: random.Random) -> str:
    return rng.choice(D.NAMES) if rng.random() < 0.25 else invent(rng, False)


def place(rng: random.Random) -> str:
    return rng.choice(D.PLACES) if rng.random() < 0.25 else invent(rng, True)


# ------------------------------------------------------------ pre-training text

WHERE = [
    "it is in {x}", "come to {x}", "i am in {x} then", "we meet in {x}", "is {x} ok?", "maybe in {x}?",
    "let's take {x}", "i like {x}", "{x} is best", "the place is {x}", "close to {x}", "how about {x}?", "in {x}",
    "i will wait in {x}", "it has to be {x}", "we stay in {x}", "and {x} is still ok?", "not here, in {x}",
]  # fmt: skip
WHEN = [
    "on {x}", "{x} is good", "how about {x}?", "maybe {x}?", "it starts on {x}", "i have time on {x}",
    "be there on {x}", "let's say {x}", "{x} would be nice", "it was on {x}", "{x}, if you can", "only on {x}",
]  # fmt: skip
DAY = [
    "on {x}", "how about {x}?", "are you there on {x}?", "{x} is fine", "i am free on {x}", "let's take {x}",
    "is {x} ok?",
]  # fmt: skip
HOUR = ["at {x}", "{x} is fine", "let's say {x}", "at {x}, please", "{x}?", "from {x} on", "not before {x}"]
DO = [
    "i want to {x}", "can you {x}?", "we have to {x}", "let's {x}", "i have to {x}", "someone must {x}",
    "it would be nice to {x}", "{x}, please", "i will {x}", "i thought we {x}", "we can't {x} now", "do we {x}?",
]  # fmt: skip
THING = [
    "i lost {x}", "{x} is gone", "i can't find {x}", "did you see {x}?", "{x} is not here", "i forgot {x}",
    "i think {x} fell down", "where is {x}?",
]  # fmt: skip
EVENT = [
    "the {x} is new", "i go to the {x}", "the {x} was moved", "what about the {x}?", "they changed the {x}",
    "the {x} is soon", "don't forget the {x}",
]  # fmt: skip


def chat(rng: random.Random) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return a dialogue, [(speaker, text)], and its facts."""
    names = [name(rng) for _ in range(3)]
    places = [place(rng) for _ in range(2)]
    a, b = names[0], names[1]
    intent = rng.choice(D.INTENTS)
    if rng.random() < 0.5:
        lines, f = D.make(rng, intent, rng.choice(D.FAMILIES[intent]), a, b, places[0], names[2:], places[1:], 0.4)
        f["intent"] = intent
    else:  # the facts one by one, in any order
        f = {"a": a, "b": b, "what": D.what_for(rng, intent), "where": places[0], "d": D.day(rng), "t": D.hour(rng)}
        f["when"] = f["d"] + " at " + f["t"]
        f["intent"] = ""
        does = THING if intent == "lost" else EVENT if intent == "move" else DO
        parts = [[rng.choice(WHERE).replace("{x}", f["where"])], [rng.choice(does).replace("{x}", f["what"])]]
        if rng.random() < 0.5:
            parts.append([rng.choice(WHEN).replace("{x}", f["when"])])
        else:
            parts.append([rng.choice(DAY).replace("{x}", f["d"]), rng.choice(HOUR).replace("{x}", f["t"])])
        rng.shuffle(parts)
        for _ in range(rng.choice([0, 1, 1, 2])):
            parts.insert(
                rng.randint(0, len(parts)), [rng.choice(rng.choice([D.OK, D.SIDE, D.REPLY, D.FINE, D.HOW, D.BYE]))]
            )
        turns = [x for p in parts for x in p]
        if rng.random() < 0.3:
            turns[0] = rng.choice(D.GREETINGS).replace("{o}", b) + ", " + turns[0]
        if rng.random() < 0.5:
            turns.append(rng.choice(D.OK if rng.random() < 0.5 else D.BYE))
        k, lines = 0, []
        for x in turns:
            lines.append(((a, b)[k % 2], x))
            k += rng.random() < 0.85
    return lines, f


ROLES = {
    "plan": [],
    "cancel": [("Who stays at home?", "a"), ("Who is not there?", "a"), ("Who waits?", "b")],
    "favour": [("Who needs help?", "a"), ("Who helps?", "b"), ("Who says thanks?", "a")],
    "lost": [("Who lost it?", "a"), ("Who will look?", "b")],
    "move": [],
    "": [],
}


def questions(rng: random.Random, lines: list[tuple[str, str]], f: dict[str, str]) -> list[str]:
    """Return lines about single facts `f` of the dialogue, and quotes from it."""
    first = lines[0][0]
    second = f["b"] if first == f["a"] else f["a"]
    what = "a " + f["what"][3:] if f["what"].startswith("my ") else f["what"]
    asks = [
        "Where? " + f["where"],
        "When? " + f["when"],
        "What? " + what,
        "Who? " + first + " and " + second,
        rng.choice(["The place is {}.", "They talk about {}.", "It is in {}."]).format(f["where"]),
        rng.choice(["The date is {}.", "The time is {}.", "It is on {}."]).format(f["when"]),
        rng.choice(["It is about this: {}.", "The topic is {}.", "They talk about {}."]).format(what),
        rng.choice(["{} talks to {}.", "{} and {} talk.", "{} writes to {}."]).format(first, second),
        rng.choice(["{} answers {}.", "{} hears from {}."]).format(second, first),
        "Who is first? " + first,
        "Who is last? " + lines[-1][0],
    ]
    if f["d"] in f["when"]:
        asks += ["Which day? " + f["d"], "What time? " + f["t"]]
    for q, key in ROLES[f["intent"]]:
        asks.append(q + " " + f[key])
    for _ in range(2):
        s, text = rng.choice(lines)
        asks.append(
            rng.choice(['Who says "{1}"? {0}', 'Quote: "{1}" says {0}.', "Once more: {0}: {1}"]).format(s, text)
        )
    return rng.sample(asks, min(len(asks), rng.randint(3, 8)))


def word_list(rng: random.Random) -> str:
    """Return a list, and the same list again or facts about its order."""
    n = rng.randint(2, 7)
    items = [
        rng.choice([name, place])(rng) if rng.random() < 0.8 else rng.choice([D.day, D.hour])(rng) for _ in range(n)
    ]
    text = ", ".join(items)
    if rng.random() < 0.5:
        return "List: " + text + ".\nAgain: " + text + "."
    k = rng.randrange(n - 1)
    order = f"After {items[k]} comes {items[k + 1]}. First is {items[0]}, last is {items[-1]}."
    return f"List: {text}.\n{order}"


def tale(rng: random.Random) -> str:
    """Return a few plain sentences about invented people, and questions."""
    people = [name(rng) for _ in range(rng.randint(2, 4))]
    facts = []
    for p in people:
        choices = [
            (place(rng), "lives in"), (place(rng), "was born in"), (name(rng), "likes"), (name(rng), "met"),
            (D.what_for(rng, "plan"), "wants to"), (D.what_for(rng, "lost"), "has"), (D.day(rng), "comes on"),
        ]  # fmt: skip
        x, kind = rng.choice(choices)
        facts.append((p, kind, x.replace("my ", "the ")))
    out = [f"{p} {k} {x}." for p, k, x in facts]
    rng.shuffle(facts)
    for p, k, x in facts:
        out.append(rng.choice([f"Who {k} {x}? {p}.", f"{p} {k} what? {x}.", f"Yes, {p} {k} {x}."]))
    return " ".join(out)


def document(rng: random.Random, easy: bool) -> str:
    """Return one document; easy ones, with which training starts, are mostly lists and tales."""
    r = rng.random()
    if r < (0.7 if easy else 0.08):
        return word_list(rng) if rng.random() < 0.7 else tale(rng)
    lines, f = chat(rng)
    text = "\n".join(f"{s}: {x}" for s, x in lines)
    r = rng.random()
    if r < 0.18:
        return text
    text += "\n\n" + "\n".join(questions(rng, lines, f))
    # A first line announces questions in most dialogues that have some; a dialogue without it mostly just ends.
    return text if r < 0.3 else "Questions follow.\n" + text


# -------------------------------------------------------------------- tokenizer


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE in which a word has one spelling: " Anna".

    The normaliser adds a space at the start of the text and of every line, and the decoder removes it: the speaker's
    name at the start of a line has the same tokens as inside a sentence.
    """
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(r"\A  "), " "),  # there was one already
            normalizers.Replace("\n", "\n "),
        ]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"'\p{L}+| ?\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n")])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tok.train_from_iterator(texts, trainer)
    return tok


# ----------------------------------------------------------------- pre-training


def packed_rows(tok: Tokenizer, rng: random.Random, count: int, easy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids of whole documents, (rows, ROW), and each token's document in its row (0: padding)."""
    texts = [document(rng, easy) for _ in range(count)]
    docs = [[1, *e.ids, 2] for e in tok.encode_batch(texts)]
    docs = [d for d in docs if len(d) <= ROW]
    docs.sort(key=len, reverse=True)
    rows: list[list[list[int]]] = []
    by_space: list[list[int]] = [[] for _ in range(ROW + 1)]  # rows by their free tokens
    for d in docs:
        k = next((k for k in range(len(d), ROW + 1) if by_space[k]), None)
        if k is None:
            rows.append([])
            i, k = len(rows) - 1, ROW
        else:
            i = by_space[k].pop()
        rows[i].append(d)
        by_space[k - len(d)].append(i)
    rng.shuffle(rows)
    ids = torch.zeros(len(rows), ROW, dtype=torch.long)
    owner = torch.zeros(len(rows), ROW, dtype=torch.long)
    for i, row in enumerate(rows):
        at = 0
        for j, d in enumerate(row):
            ids[i, at : at + len(d)] = torch.tensor(d)
            owner[i, at : at + len(d)] = j + 1
            at += len(d)
    return ids, owner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=38, help="length of the pre-training")
    parser.add_argument("--steps", type=int, default=0, help="length of the pre-training in steps instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--opt", default="muon")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)

    rng = random.Random(SEED)
    tok = make_tokenizer(document(rng, False) for _ in range(30000))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=args.hidden, intermediate_size=int(args.hidden * 2.5), num_hidden_layers=4,
        num_attention_heads=args.heads, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(sum(p.numel() for p in model.parameters()), "parameters")

    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if args.opt == "muon":
        opts = [
            torch.optim.Muon(hidden, lr=args.lr, weight_decay=0.01, ns_steps=4),
            torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
    else:
        opts = [torch.optim.AdamW(hidden + rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]
    base = [o.param_groups[0]["lr"] for o in opts]
    same = torch.tril(torch.ones(ROW, ROW, dtype=torch.bool))

    @torch.compile
    def loss_of(ids: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            keep = (owner[:, :, None] == owner[:, None, :]) & same
            mask = torch.where(keep, 0.0, -1e9).to(torch.bfloat16)[:, None]
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            labels = ids[:, 1:].masked_fill(ids[:, 1:] < 2, -100)  # neither padding nor the next document
            return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB).float(), labels.reshape(-1))

    def save() -> None:
        # bitsandbytes' CPU code needs widths that are multiples of 64: the MLP gets more rows of zeros, which do not
        # change its output.
        wide = LlamaConfig(**{**config.to_dict(), "intermediate_size": math.ceil(config.intermediate_size / 64) * 64})
        copy = LlamaForCausalLM(wide)
        weights = {k: torch.zeros_like(v) for k, v in copy.state_dict().items()}
        for k, v in model.state_dict().items():
            weights[k][tuple(slice(n) for n in v.shape)] = v
        copy.load_state_dict(weights)
        copy.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
        copy.config._attn_implementation = "sdpa"
        copy.to(torch.bfloat16).save_pretrained(args.out)
        fast.save_pretrained(args.out)

    step, tokens, start, saved, mean, done = 0, 0, time.time(), 0.0, None, 0.0
    while done < 1:
        ids, owner = packed_rows(tok, rng, 4000, easy=done < 0.08)
        for i in range(0, len(ids) - BATCH + 1, BATCH):
            minutes = (time.time() - start) / 60
            done = step / args.steps if args.steps else minutes / args.minutes
            if done >= 1:
                break
            rate = min(1, (step + 1) / 100) * (1 if done < 0.5 else max(0.0, 2 * (1 - done)) * 0.97 + 0.03)
            for o, lr in zip(opts, base, strict=True):
                o.param_groups[0]["lr"] = lr * rate
            loss = loss_of(ids[i : i + BATCH], owner[i : i + BATCH])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in opts:
                o.step()
                o.zero_grad()
            step += 1
            tokens += int((owner[i : i + BATCH] > 0).sum())
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            if step % 50 == 0:
                print(f"step {step} tokens {tokens} minutes {minutes:.1f} rate {rate:.2f} loss {mean:.3f}", flush=True)
            if minutes - saved >= args.save_every:
                saved = minutes
                save()
    save()
    print(f"done: {step} steps, {tokens} tokens, {(time.time() - start) / 60:.1f} minutes, loss {mean:.3f}")


if __name__ == "__main__":
    main()
