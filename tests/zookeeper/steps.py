"""The far end of the script's runner for clients written in Python: one step comes in as a line of JSON, its result lines go out.

A step has `client`, `verb`, `words` (the rest of the line, quoted words decoded) and, for multi, `operations` (lists of words). Numbers
that differ from run to run leave marked, so that the runner can compare them: `z:` a zxid, `t:` a time, `s:` a session.
"""

import json
import sys

PERMISSIONS = (("c", 4), ("d", 8), ("r", 1), ("w", 2), ("a", 16))
MODES = {"persistent": 0, "ephemeral": 1, "sequential": 2, "ephemeral-sequential": 3, "container": 4}


def split(words):
    """Positional words, and those of the form `name=value` as a dictionary. A word that is quoted in the script is positional."""
    positional, named = [], {}
    for word in words:
        name, sign, value = (word["text"] or "").partition("=")
        if sign and not word["quoted"]:
            named[name] = value
        else:
            positional.append(word["text"])
    return positional, named


def permissions(text):
    return sum(bit for letter, bit in PERMISSIONS if letter in text)


def permission_letters(bits):
    return "".join(letter for letter, bit in PERMISSIONS if bits & bit) or "-"


def parse_acl(text):
    """`scheme:id:perms,…`; an id may hold colons."""
    entries = []
    for entry in text.split(",") if text else []:
        scheme, _, rest = entry.partition(":")
        identity, _, letters = rest.rpartition(":")
        entries.append((permissions(letters), scheme, identity))
    return entries


def show_data(data):
    """As the script writes data: null, a quoted string, or a repeated one."""
    if data is None:
        return "null"
    if len(data) > 100 and len(set(data)) == 1:
        return f"{json.dumps(chr(data[0]))}*{len(data)}"
    return json.dumps(data.decode("utf-8", "backslashreplace"), ensure_ascii=False)


def show_stat(czxid, mzxid, ctime, mtime, version, cversion, aversion, ephemeral_owner, data_length, children, pzxid):
    owner = f"s:{ephemeral_owner}" if ephemeral_owner else "none"
    return (
        f"czxid=z:{czxid} mzxid=z:{mzxid} pzxid=z:{pzxid} ctime=t:{ctime} mtime=t:{mtime} version={version} cversion={cversion} "
        f"aversion={aversion} owner={owner} length={data_length} children={children}"
    )


def show_list(names):
    return "[" + ", ".join(sorted(names)) + "]"


def serve(driver):
    """Answers steps until the input ends. What a driver raises ends it: the runner sees the traceback."""
    for line in sys.stdin:
        step = json.loads(line)
        lines = driver.step(step)
        print(json.dumps(lines), flush=True)
