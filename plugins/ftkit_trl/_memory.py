"""The memory that a training needs on one GPU, computed from the model's shapes and the settings. Light: no torch.

What is known exactly is counted: weights, adapters, gradients, optimizer states, and what PyTorch keeps of a forward
pass for the backward pass. Two constants are fitted to published peaks (`_SPREAD`, `_FOUR_BIT`); docs/memory.md says
how, and how large the errors are on peaks that they were not fitted to. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT = 500_000_000  # what the driver and the CUDA libraries take on a GPU: not measured here, usually 0.3-0.6 GB
LIBRARIES = 900_000_000  # of a process on a CPU: Python, PyTorch, transformers, TRL
NF4 = 0.5 + 4 / 64  # bytes a weight: 4 bits, and a 32-bit scale for 64 weights
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)  # the scales in 8 bits
_SPREAD = 1.15  # fitted: what a pass takes at its peak, against what it keeps (temporaries, memory between tensors)
_FOUR_BIT = 1.1  # fitted: the share of the inputs of 4-bit layers that is kept beside what other layers keep
_TILE = (4096, 32768)  # tokens, and entries of the vocabulary, whose logits TRL's loss holds at a time
_LOGIT = 10  # bytes a logit where all are held: 16-bit value and gradient, 32-bit copy, 16 bits in between
# Bytes a trained weight that the optimizer's state takes; AdamW's two moments in 32 bits where nothing is known.
_ADAM = 8.0
_OPTIMIZERS = (
    ("8bit", 2.0),
    ("4bit", 1.0),
    ("fp8", 2.0),
    ("adafactor", 0.1),
    ("adalomo", 0.1),
    ("lomo", 0.1),
    ("sgd", 4.0),
    ("lion", 4.0),
    ("adagrad", 4.0),
    ("rmsprop", 4.0),
)


@dataclass(frozen=True)
class Linear:
    """One linear layer of the model's blocks: inputs, outputs, and whether it gets an adapter."""

    inputs: int
    outputs: int
    adapted: bool = False


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. `linears` are those of all blocks; `head` is 0 where the output layer is tied."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    heads: int
    query: int  # width of all heads' queries together
    key: int  # width of all heads' keys together: smaller with grouped heads
    inner: int  # width inside the MLP
    gated: bool  # the MLP multiplies two projections
    linears: tuple[Linear, ...]

    @property
    def in_linears(self) -> int:
        return sum(layer.inputs * layer.outputs for layer in self.linears)


@dataclass(frozen=True)
class Setting:
    """What decides the memory beside the model. `tokens` are those of one forward pass, `longest` of one example.

    `width` is of weights that are not quantised, and of activations: bytes. `master` is of a trained weight, its
    gradient, and each of two moments: 4 where training is in mixed precision.
    """

    tokens: int
    longest: int
    adapter: bool
    lora_r: int = 0
    four_bit: float | None = None  # bytes a weight: NF4 or NF4_DOUBLE
    width: int = 2
    master: int = 4
    optimizer: str = "adamw_torch"
    checkpointing: bool = False
    eager: bool = False  # attention that keeps the scores of all pairs of tokens
    whole_logits: bool = False  # the trainer builds the logits of all tokens at once
    processes: int = 1
    zero: int = 0  # ZeRO stage; FSDP2 shards as stage 3 does
    offload: bool = False  # optimizer states and weights lie in the machine's memory
    context: int = CONTEXT
    rows: int = 1  # prompts that are answered at once
    prompt: int = 0  # tokens of the longest prompt with its answer


@dataclass(frozen=True)
class Memory:
    """Where the memory goes, in bytes on one GPU."""

    weights: float
    training: float  # gradients, optimizer states, 32-bit copies of trained weights, adapters
    activations: float
    logits: float
    context: float

    @property
    def total(self) -> int:
        return round(self.weights + self.training + self.activations + self.logits + self.context)


def training_memory(shape: Shape, setting: Setting) -> Memory:
    """Return what a training step needs at its peak."""
    weights = _weights(shape, setting)
    states = _states(shape, setting)
    kept = sum(_kept(shape, setting))
    if setting.checkpointing:  # the inputs of all blocks, and what one block keeps while it is computed again
        residual = shape.layers * shape.hidden * _residual(setting)
        kept = residual + kept / max(1, shape.layers)
    if setting.whole_logits:
        logits = shape.vocabulary * setting.tokens * _LOGIT
    else:
        logits = min(setting.tokens, _TILE[0]) * min(shape.vocabulary, _TILE[1]) * (2 * setting.width + 4)
        logits += (
            0 if setting.adapter else 4 * shape.vocabulary * shape.hidden
        )  # the head's gradient, summed in 32 bits
    if setting.zero == 3 and setting.processes > 1:  # the block that computes, and the next one, are gathered
        weights += 2 * shape.in_linears * setting.width / max(1, shape.layers)
    return Memory(weights, states, _SPREAD * kept * setting.tokens, float(logits), setting.context)


def answering_memory(shape: Shape, setting: Setting) -> Memory:
    """Return what answering a batch of prompts needs: the weights, the cache of keys and values, and one layer's work."""
    weights = _weights(shape, setting, trained=False)
    if setting.adapter:
        weights += 4 * adapter_parameters(shape, setting.lora_r)
    cache = 2 * shape.key * shape.layers * setting.width
    work = setting.width * (4 * shape.hidden + 2 * shape.query + 3 * shape.inner)
    tokens = setting.rows * setting.prompt
    logits = setting.rows * shape.vocabulary * _LOGIT
    return Memory(weights, 0.0, float((cache + work) * tokens), float(logits), setting.context)


def adapter_parameters(shape: Shape, rank: int) -> int:
    return sum(rank * (layer.inputs + layer.outputs) for layer in shape.linears if layer.adapted)


def optimizer_bytes(name: str) -> float:
    """Return the bytes of optimizer state for each trained weight, by the optimizer's name in transformers."""
    return next((size for part, size in _OPTIMIZERS if part in name), _ADAM)


# ---------------------------------------------------------------- parts


def _weights(shape: Shape, setting: Setting, trained: bool = True) -> float:
    """Return the bytes of the base model's weights: embeddings, output layer and norms are never quantised."""
    others = shape.parameters - shape.in_linears
    if setting.four_bit is not None:
        total = shape.in_linears * setting.four_bit + others * setting.width
    else:
        full = trained and not setting.adapter
        total = shape.parameters * float(setting.master if full else setting.width)
        if full and setting.width < setting.master:  # the forward pass keeps 16-bit copies of the layers' weights
            total += shape.in_linears * setting.width
    if trained and setting.zero == 3:
        total /= setting.processes
        if setting.offload:
            total = 0.0
    return total


def _states(shape: Shape, setting: Setting) -> float:
    """Return the bytes of gradients and optimizer states, and of an adapter's own weights."""
    trained = adapter_parameters(shape, setting.lora_r) if setting.adapter else shape.parameters
    own = trained * setting.master if setting.adapter else 0.0
    gradients = trained * setting.master
    optimizer = trained * optimizer_bytes(setting.optimizer) * setting.master / 4
    count = setting.processes
    if setting.zero == 0 and count > 1:
        gradients *= 2  # DDP sends them from buffers of its own
    if setting.zero >= 1:
        optimizer /= count
    if setting.zero >= 2:
        gradients /= count
    if setting.zero == 3:
        own /= count
    if setting.offload:
        optimizer = 0.0
    return own + gradients + optimizer


def _residual(setting: Setting) -> int:
    """Return the bytes of one number between two blocks: trained 32-bit norms give 32 bits."""
    return setting.width if setting.adapter else max(setting.width, setting.master)


def _kept(shape: Shape, setting: Setting) -> tuple[float, float, float]:
    """Return the bytes a token that norms and attention, the MLP, and inputs of linear layers keep for the backward pass.

    Adding numbers keeps nothing; a product keeps both factors; a linear layer keeps its input where its weights, or an
    adapter beside it, are trained.
    """
    width, hidden = setting.width, shape.hidden
    norms = 2 * hidden * 4  # each keeps its input in 32 bits
    attention = width * (2 * shape.query + 2 * shape.query)  # q and the output; k and v, repeated for grouped heads
    if setting.eager:
        attention += shape.heads * setting.longest * (width + 4)
    blocks = shape.layers * (norms + attention)
    mlp = shape.layers * width * shape.inner * (3 if shape.gated else 1)
    if setting.adapter:
        # An adapter reads a copy of its own in its own precision.
        inputs = width * sum(layer.inputs + 2 * setting.lora_r for layer in shape.linears if layer.adapted)
        if setting.four_bit is not None:
            inputs += _FOUR_BIT * width * sum(layer.inputs for layer in shape.linears)
    else:
        # One copy for q, k and v, one for gate and up; the norms keep what they multiply with their weights.
        inputs = shape.layers * (width * (2 * hidden + shape.query + shape.inner) + 2 * hidden * _residual(setting))
    return float(blocks), float(mlp), float(inputs)
