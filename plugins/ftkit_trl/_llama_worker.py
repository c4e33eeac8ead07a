"""llama-cpp-python in a process of its own: native code that crashes ends this process, and no other.

    python -m ftkit_trl._llama_worker answer FILE.gguf ASKED.json
    python -m ftkit_trl._llama_worker quantise SOURCE.gguf FILE.gguf q4_k_m

The last line on stdout is the result as JSON. An exception ends the process, and is the finding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answer(file: str, asked: str) -> dict[str, Any]:
    """Answer each chat of ASKED.json greedily, by the chat template that the file holds."""
    import llama_cpp

    wanted = json.loads(Path(asked).read_text(encoding="utf-8"))
    model: Any = llama_cpp.Llama(model_path=file, n_ctx=0, verbose=False, seed=0)
    answers = []
    for chat in wanted["chats"]:
        done = model.create_chat_completion(
            chat, temperature=0.0, max_tokens=wanted["max_tokens"], stop=wanted["stop"],
            repeat_penalty=wanted["repeat_penalty"], top_k=1, top_p=1.0, min_p=0.0,
        )  # fmt: skip
        answers.append((done["choices"][0]["message"]["content"] or "").strip())
    return {"version": llama_cpp.__version__, "answers": answers}


def quantise(source: str, file: str, quantisation: str) -> dict[str, Any]:
    """Write `source` again with quantised weights."""
    import llama_cpp

    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantisation.upper()}")
    status = llama_cpp.llama_model_quantize(source.encode(), file.encode(), parameters)
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")
    return {"version": llama_cpp.__version__}


if __name__ == "__main__":
    print(json.dumps({"answer": answer, "quantise": quantise}[sys.argv[1]](*sys.argv[2:])))
