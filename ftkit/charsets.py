"""Which encoding text that is not UTF-8 most likely has, and how it is converted."""

from __future__ import annotations

import codecs

PEEK = 1 << 20  # bytes that are looked at
# What is called Shift_JIS is, as on the web, what Windows writes: it also has ①, ㈱ and ～.
SUPERSETS = {"shift_jis": "cp932", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949"}
_ICONV = {"shift_jis": "CP932", "euc_jp": "EUC-JP", "iso2022_jp": "ISO-2022-JP", "utf-16-le": "UTF-16LE",
          "utf-16-be": "UTF-16BE"}  # fmt: skip
_KANA = 0.1  # of what is beyond ASCII: Japanese text has more, and text in other languages has none


def likely(data: bytes) -> str | None:
    """Return the encoding that bytes which are not UTF-8 most likely have, as Python names it; None for no idea.

    Known are UTF-16 and the encodings of Japanese.
    """
    head = data[:PEEK]
    odd, even = head[1::2].count(0), head[::2].count(0)
    if odd or even:
        return "utf-16-le" if odd >= even else "utf-16-be"
    if is_iso2022_jp(head):
        return "iso2022_jp"
    for name in ("euc_jp", "shift_jis"):  # most Shift_JIS is no EUC-JP; some EUC-JP could be half-width Shift_JIS
        try:
            text = codecs.getincrementaldecoder(SUPERSETS.get(name, name))().decode(head)
        except UnicodeDecodeError:
            continue
        beyond = [char for char in text if char > "\x7f"]
        if sum("ぁ" <= char <= "ヿ" or "ｦ" <= char <= "ﾟ" for char in beyond) > _KANA * len(beyond):
            return name
    return None


def is_iso2022_jp(data: bytes) -> bool:
    """Return whether bytes hold the escape sequences of ISO-2022-JP, which is ASCII to any other reader."""
    return b"\x1b$B" in data or b"\x1b$@" in data


def conversion(path: str, encoding: str | None) -> str:
    """Return the command that writes a file again as UTF-8."""
    return f"iconv -f {_ICONV.get(encoding or '', encoding or 'ENCODING')} -t UTF-8 '{path}' > NEW_FILE"
