"""The keys of a recipe that the core owns, as models: what may stand there, its default, and its meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from ..api import Options
from ..records import GenerationConfig
from ..text import nearest, quoted

LOADER = "loader:"  # `path: loader:NAME` names a plugin


def _amount(value: str | int | float) -> str | int | float:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share of the rows lies between 0 and 1; a count is a whole number; or write `all`")
    if isinstance(value, int) and value < 0:
        raise ValueError("a count of rows cannot be negative")
    return value


ChatRole = Literal["system", "developer", "user", "assistant", "tool", "function_call"]
# What `dataset.chat_format` stands for: values of `dataset.columns` that the recipe does not set itself.
_FORMATS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "messages": "conversations",
        "role_key": "from",
        "content_key": "value",
        "roles": {
            **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"},
            **{"observation": "tool", "function_response": "tool", "function_call": "function_call"},
        },
    },
    "alpaca": {"instruction": "instruction", "target": "output"},
}


def columns_of_format(chat_format: Any, columns: Any) -> Any:
    """Return `dataset.columns` as written, with what `dataset.chat_format` adds to it."""
    given = {} if columns is None else columns
    if not isinstance(chat_format, str) or chat_format not in _FORMATS or not isinstance(given, Mapping):
        return columns
    added = dict(_FORMATS[chat_format])
    if given.get("targets") is not None:
        added.pop("target", None)
    if chat_format == "alpaca" and given.get("messages") is not None:
        return columns  # refused in `DatasetKeys`, with what the recipe says
    if isinstance(roles := given.get("roles"), Mapping):
        given = {**given, "roles": {**added.get("roles", {}), **roles}}
    return {**added, **{key: value for key, value in given.items() if value is not None or key not in added}}


Amount = Annotated[Literal["all"] | int | float, AfterValidator(_amount)]


class Splits(Options):
    """How many rows each split gets: `all`, a count, or a share. `dict(splits)` maps split to amount."""

    train: Amount = Field("all", description="training rows: all, a count, or a share such as 0.8")
    validation: Amount = Field("all", description="rows that choose the best checkpoint: all, a count, or a share")
    test: Amount = Field("all", description="rows that are measured: all, a count, or a share")
    renamed: ClassVar[Mapping[str, str]] = {"val": "validation", "valid": "validation", "dev": "validation"}


class Columns(Options):
    """Which columns of a row are read. With `messages`, `input` may be absent; `targets` replaces `target`."""

    input: str | None = Field(
        None, description="column of the input text (default `input`, unless `messages` is given)"
    )
    target: str | None = Field(
        None, description="column of the right answer (default `target`, unless `targets` or `messages` is given)"
    )
    targets: str | None = Field(None, description="column that holds a list of right answers")
    messages: str | None = Field(None, description="column that holds a whole chat as a list of {role, content}")
    tools: str | None = Field(
        None, description="column of the functions that the model may call (default `tools`, where chats have it)"
    )
    system: str | None = Field(
        None, description="column of a row's system message (default `system` for chat_format sharegpt and alpaca)"
    )
    instruction: str | None = Field(None, description="column of the instruction, for chat_format alpaca")
    role_key: str = Field("role", description="key of a message that holds its role")
    content_key: str = Field("content", description="key of a message that holds its text")
    roles: dict[str, ChatRole] = Field({}, description="roles of the data -> system, developer, user, assistant, tool")
    ignored: list[str] = Field([], description="keys of a message that are not read")
    id: str | None = Field(None, description="column of a row's id (default: made from the row)")
    meta: list[str] = Field([], description="columns kept with each example, for the report and for evaluators")
    renamed: ClassVar[Mapping[str, str]] = {
        "output": "target",
        "label": "target",
        "reference": "target",
        "prompt": "input",
        "text": "input",
        "response": "target",
        "query": "input",
        "conversations": "messages",
        "field_messages": "messages",
        "role_tag": "role_key",
        "message_field_role": "role_key",
        "content_tag": "content_key",
        "message_field_content": "content_key",
        "message_property_mappings": "role_key",
        "field_instruction": "instruction",
        "field_input": "input",
        "field_output": "target",
        "field_system": "system",
        "field_tools": "tools",
    }

    @field_validator("roles", mode="before")
    @classmethod
    def _roles(cls, value: Any) -> Any:
        lists = [k for k, v in value.items() if isinstance(v, list)] if isinstance(value, Mapping) else []
        if lists:
            names = [str(name) for name in value[lists[0]]] or ["NAME"]
            pairs = ", ".join(f"{name}: {lists[0]}" for name in names)
            raise ValueError(f"each role of the data is mapped to one of ftkit: {{{pairs}}}")
        return value

    @model_validator(mode="after")
    def _defaults(self) -> Columns:
        if self.target is not None and self.targets is not None:
            raise ValueError("write `target` or `targets`, not both")
        if self.messages is not None and (self.input is not None or self.instruction is not None):
            beside = "input" if self.input is not None else "instruction"
            raise ValueError(
                f"`{beside}` is not read beside `messages`, which holds the whole chat: remove one of them"
            )
        found: dict[str, str] = {}
        if self.input is None and self.messages is None and self.instruction is None:
            found["input"] = "input"
        if self.target is None and self.targets is None and self.messages is None:
            found["target"] = "target"
        read = {**dict(self), **found}
        if read["messages"] is None:
            for key in ("target", "targets"):
                if read[key] is not None and read[key] == read["input"]:
                    raise ValueError(f"`input` and `{key}` are both {read[key]!r}: every prompt would hold its answer")
        return self.model_copy(update=found) if found else self


DatasetPath = str | list[str] | dict[str, Any]  # one place; files of one table; files (one, or a list) by split
_SPLITS = ("train", "validation", "test")


def _path(value: Any) -> DatasetPath:
    if isinstance(value, dict):
        for split, files in value.items():
            if split not in _SPLITS:
                near = Splits.renamed.get(split) or nearest(str(split), _SPLITS)
                hint = f"did you mean `{near}`?" if near else f"there are {', '.join(_SPLITS)}"
                raise ValueError(f"there is no split `{split}`; {hint}")
            _files(files, f"files of `{split}`")
        if not value:
            raise ValueError("it names no file")
        return value
    found: DatasetPath = _files(value, "files")
    return found


def _files(value: Any, what: str) -> Any:
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return [_place(name) for name in value]
    if not isinstance(value, str):
        raise ValueError(f"the {what} must be text or a list of texts, not {quoted(value)}")
    return _place(value)


def _place(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("a path cannot be empty or contain NUL")
    if "://" in value:
        raise ValueError("a URL is not read: download the file and name it, or name a data set of the hub by its id")
    return value


def as_delimiter(value: str | None) -> str | None:
    """Return a delimiter as one character. Raises ValueError."""
    value = {"\\t": "\t", "tab": "\t"}.get(value or "", value)
    if value is not None and (len(value) != 1 or value in '"\r\n'):
        raise ValueError("a delimiter is one character such as ; or | (a tab is written as \\t), and no quote")
    return value


def as_encoding(value: str | None) -> str | None:
    """Return an encoding that Python knows. Raises ValueError."""
    if value is None:
        return None
    try:
        b"a".decode(value, "replace")
    except (LookupError, ValueError):
        known = (
            "utf-8",
            "utf-16",
            "shift_jis",
            "euc_jp",
            "iso2022_jp",
            "cp1252",
            "latin-1",
            "gb18030",
            "big5",
            "cp949",
        )
        near = nearest(value, known)
        hint = f"did you mean {near}?" if near else f"such as {', '.join(known)}"
        raise ValueError(f"there is no encoding {value!r}; {hint}") from None
    return value


_FILES_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_PATH_SCHEMA = {
    "anyOf": [
        *_FILES_SCHEMA["anyOf"],
        {"type": "object", "properties": dict.fromkeys(_SPLITS, _FILES_SCHEMA), "additionalProperties": False},
    ]
}


class DatasetKeys(Options):
    """Where the rows come from. The options of a `loader:NAME` stand beside these keys."""

    path: Annotated[DatasetPath, PlainValidator(_path), WithJsonSchema(_PATH_SCHEMA)] = Field(
        description="hub id, folder of splits, .jsonl/.json/.csv/.tsv/.parquet file, list of files, "
        "{train: FILE, test: FILE}, or loader:NAME"
    )
    name: str | None = Field(None, description="configuration of a hub dataset, such as `main`")
    revision: str | None = Field(None, description="revision of a hub dataset; pin it to get the same rows for ever")
    columns: Columns = Field(default_factory=partial(Columns.model_validate, {}), description="which columns are read")
    splits: Splits = Field(
        default_factory=partial(Splits.model_validate, {}), description="how many rows each split gets"
    )
    chat_format: Literal["messages", "sharegpt", "alpaca"] | None = Field(
        None,
        description="format of the rows: messages ({role, content}), sharegpt (column `conversations` of {from, value}) "
        "or alpaca (columns instruction, input, output); sets dataset.columns",
    )
    train_on: Literal["last", "all"] = Field(
        "last", description="assistant turns in the loss mask: the last, or all whose `weight` is not 0"
    )
    drop_leaked: bool = Field(False, description="remove training rows whose input is also in validation or test")
    allow_empty_targets: bool = Field(
        False, description="accept that more than 5 % of the targets of a split are empty"
    )
    delimiter: Annotated[str | None, AfterValidator(as_delimiter)] = Field(
        None, description="what separates the fields of .csv and .tsv files (default: a comma, a tab)"
    )
    encoding: Annotated[str | None, AfterValidator(as_encoding)] = Field(
        None,
        description="encoding of text files, such as shift_jis (default: UTF-8, or what a byte order mark says)",
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "name_or_path": "path",
        "dataset": "path",
        "data_files": "path",
        "subset": "name",
        "config": "name",
        "split": "splits",
        "sep": "delimiter",
        "separator": "delimiter",
        "charset": "encoding",
        "type": "chat_format",
        "format": "chat_format",
        "formatting": "chat_format",
        "field_messages": "columns.messages",
        "messages": "columns.messages",
        "message_property_mappings": "columns.role_key",
        "tags": "columns.roles",
        "roles": "columns.roles",
        "roles_to_train": "train_on",
        "mask_history": "train_on",
        "train_on_inputs": "train_on",
        "assistant_only_loss": "train_on",
    }

    @model_validator(mode="before")
    @classmethod
    def _format(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("chat_format") is None:
            return data
        columns = columns_of_format(data["chat_format"], data.get("columns"))
        return data if columns is None else {**data, "columns": columns}

    @model_validator(mode="after")
    def _fits(self) -> DatasetKeys:
        columns = self.columns
        if self.chat_format == "messages" and columns.messages is None:
            raise ValueError("`chat_format: messages` needs the column of the chats: columns: {messages: messages}")
        if self.chat_format == "alpaca" and columns.messages is not None:
            raise ValueError(
                "`chat_format: alpaca` reads `instruction`, `input` and `target`: remove `columns.messages`"
            )
        if self.chat_format != "alpaca" and columns.instruction is not None:
            raise ValueError("`columns.instruction` is read with `chat_format: alpaca`")
        return self


class DatasetConfig(DatasetKeys):
    """The `dataset` section as it was checked, with the loader that `path: loader:NAME` names."""

    loader: Any = Field(None, exclude=True)  # PluginRef or None
    given: Any = Field(None, exclude=True, repr=False)  # rows given from Python


_PLACEHOLDERS = ("instruction", "input")
# A name begins with a letter: {3} and {"a": 1} are text.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^\W\d](?:[\w .-]*\w)?)\}")


def _template(template: str | None) -> str | None:
    tokens = [m.group(1) or m.group() for m in _PLACEHOLDER.finditer(template or "{input}")]
    if tokens.count("{{") != tokens.count("}}"):
        raise ValueError("{{ and }} stand for single braces, and here they do not pair up")
    if not set(tokens) - {"instruction", "{{", "}}"}:
        raise ValueError("it has no {input} and names no column: every prompt would be the same")
    return template


class Prompt(Options):
    """The text put around each input. Lines that end `instruction` and `system` lose their last line break."""

    instruction: str = Field("", description="the task in words, the same for every row")
    system: str | None = Field(None, description="system message, for models that have one")
    template: Annotated[str | None, AfterValidator(_template)] = Field(
        None,
        description="text with {instruction}, {input} and any {column} of the rows; {{ and }} stand for braces "
        "(default: both with an empty line between, or {input} alone where there is no instruction)",
    )
    renamed: ClassVar[Mapping[str, str]] = {"system_prompt": "system", "prompt_template": "template"}

    @model_validator(mode="after")
    def _checked(self) -> Prompt:
        instruction = self.instruction.rstrip("\n")  # a YAML block ends with a line break that is not meant
        default = "{instruction}\n\n{input}" if instruction else "{input}"
        template = default if self.template is None else self.template
        if instruction and "instruction" not in _PLACEHOLDER.findall(template):
            raise ValueError("the template has no {instruction}: the instruction would be lost")
        system = None if self.system is None else self.system.rstrip("\n")
        found = {"instruction": instruction, "system": system, "template": template}
        return self if found == dict(self) else self.model_copy(update=found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names itself, beside {input} and {instruction}."""
        return tuple(dict.fromkeys(n for n in _PLACEHOLDER.findall(self._text) if n and n not in _PLACEHOLDERS))

    def columns_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return `columns`, and `instruction` where the recipe has none, the template names it, and the row has it."""
        own = not self.instruction and "instruction" in row and "instruction" in _PLACEHOLDER.findall(self._text)
        return (*self.columns, "instruction") if own else self.columns

    @property
    def reads_input(self) -> bool:
        """Whether the template has {input}, the column that `dataset.columns.input` names."""
        return "input" in _PLACEHOLDER.findall(self._text)

    @property
    def _text(self) -> str:
        return self.template or "{input}"

    def render(self, input: str, columns: Mapping[str, str] = {}) -> str:
        """Return the user's message for one row: its input, and the text of the columns that the template names.

        Braces inside the data are never interpreted.
        """
        values = {**columns, "input": input} | ({"instruction": self.instruction} if self.instruction else {})
        braces = {"{{": "{", "}}": "}"}
        return _PLACEHOLDER.sub(lambda match: braces.get(match.group()) or values.get(match.group(1), ""), self._text)


def _name(value: str) -> str:
    # A mark (M) is part of the letter before it: Hindi and Thai cannot be written without.
    known = all(c in "._+-" or unicodedata.category(c)[0] in "LMN" for c in value)
    if not known or not re.match(r"\w", value) or len(value) > 80:
        raise ValueError("a name is up to 80 letters, digits and . _ + - (it becomes part of a folder's name)")
    return value


class ExportKeys(Options):
    """What `ftkit export RUN` writes where it is given no options. It is checked before training."""

    merge: bool = Field(False, description="add the adapter to the weights of its base model")
    base: Literal["trained", "original"] = Field(
        "trained", description="weights to merge into: those of training, or those that the base is published with"
    )
    gguf: Literal["q8_0", "q4_k_m"] | None = Field(None, description="quantisation of a GGUF file; none by default")

    @model_validator(mode="after")
    def _asks_for_something(self) -> ExportKeys:
        if self.base == "original" and not (self.merge or self.gguf):
            raise ValueError("`base` says what an adapter is merged into: write `merge: true` or `gguf` beside it")
        return self


class RecipeKeys(Options):
    """A recipe's top level; what plugins own is checked against their own models."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="what the run is called")
    note: str | None = Field(None, description="a sentence that the report shows, such as what the numbers stand for")
    seed: int = Field(42, ge=0, lt=2**32, description="seed of the training; never changes which rows are measured")
    measure: Literal["test", "validation"] = Field(
        "test",
        description="split that base and tuned model are measured on; validation, to choose settings: then the run "
        "keeps no test rows",
    )
    dataset: DatasetKeys = Field(description="where the rows come from")
    prompt: Prompt = Field(
        default_factory=partial(Prompt.model_validate, {}), description="the text put around each input"
    )
    backend: Any = Field(description="what answers and learns: {plugin: NAME, its options}")
    generation: GenerationConfig = Field(
        default_factory=partial(GenerationConfig.model_validate, {}), description="how text is generated"
    )
    evaluator: Any = Field(description="what scores the answers: NAME, {plugin: NAME, its options}, or a list of them")
    controls: Any = Field(None, description="further backends whose base model is measured on the same rows")
    tracking: Any = Field(None, description="trackers that watch the run")
    export: ExportKeys | None = Field(
        None, description="what `ftkit export` writes of the run; checked before training, so that nothing is missing"
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "evaluators": "evaluator",
        "metrics": "evaluator",
        "metric": "evaluator",
        "data": "dataset",
        "datasets": "dataset",
        "trackers": "tracking",
        "report_to": "tracking",
        "model": "backend.base_model",
        "base_model": "backend.base_model",
        "random_seed": "seed",
        "chat_format": "dataset.chat_format",
        "train_on": "dataset.train_on",
        "roles_to_train": "dataset.train_on",
        "mask_history": "dataset.train_on",
        "train_on_inputs": "dataset.train_on",
        "assistant_only_loss": "dataset.train_on",
        "defaults": "extends",
        "inherits": "extends",
    }
