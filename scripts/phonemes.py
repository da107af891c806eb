"""Writes core/src/text/phonemes/english.bin: the pronunciations of English words and the rules for other words.

The words are those of misaki 0.9.4 (Apache-2.0), whose alphabet Kokoro was trained with: `us_gold.json`, checked by
hand, and `us_silver.json`, marked with `~`. The rules are learned from them here. Run it as
`python scripts/phonemes.py FOLDER`, the folder `misaki/data` of that package.

The file is two zlib streams behind the length of the first one (32 bits, little-endian). The first is lines in order
of their bytes: the number of characters shared with the word before (`0` and up), the rest of the word, a tab, and the
phonemes, or `TAG=phonemes` for several tags of the Penn Treebank or parts of speech, separated by `|`; nothing after
`=` is a word that is spelled. Every 64th line shares nothing. The second is a list of the phonemes that a letter may
become, one a line, an empty line, and a tree in preorder: the number of the phonemes (16 bits), the number of
branches, and for each branch its letter and its node. The branches of each level are the letters at `PLACES`."""

import json
import struct
import sys
import zlib
from collections import Counter, defaultdict
from math import log
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "core/src/text/phonemes/english.bin"
STRESSES = "ˈˌ"
# Letters around the one that is read, in the order in which the rules ask for them.
PLACES = [0, 1, -1, 2, -2, 3, -3, 4, -4]
END = "#"


def lines(gold: dict, silver: dict) -> str:
    def text(value, mark: str) -> str:
        if isinstance(value, str):
            return mark + value
        return mark + "|".join(f"{tag}={phonemes or ''}" for tag, phonemes in value.items())

    words = {word: text(value, "~") for word, value in silver.items()}
    words |= {word: text(value, "") for word, value in gold.items()}
    result, last = [], b""
    for i, (word, phonemes) in enumerate(sorted((word.encode(), text) for word, text in words.items())):
        shared = 0
        while i % 64 and shared < min(len(word), len(last), 70) and word[shared] == last[shared]:
            shared += 1
        result.append(bytes([48 + shared]) + word[shared:] + b"\t" + phonemes.encode())
        last = word
    return b"\n".join(result)


def units(phonemes: str) -> list[str]:
    """Phonemes with the stress in front of them."""
    result, stress = [], ""
    for phoneme in phonemes:
        if phoneme in STRESSES:
            stress = phoneme
        else:
            result.append(stress + phoneme)
            stress = ""
    return result


def aligned(words: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The phonemes of each letter, none to three, by the most probable alignment (hard expectation maximization)."""
    costs = defaultdict(lambda: 8.0)
    for word, phonemes in words:
        for i, letter in enumerate(word):
            near = round(i * len(phonemes) / len(word))
            for j in range(max(0, near - 1), min(len(phonemes), near + 2)):
                costs[letter, (phonemes[j].lstrip(STRESSES),)] -= 1e-4
    result = []
    for _ in range(3):
        counts, result = Counter(), []
        for word, phonemes in words:
            plain = [phoneme.lstrip(STRESSES) for phoneme in phonemes]
            best = {0: (0.0, None)}
            table = [best]
            for letter in word:
                following = {}
                for place, (cost, _) in best.items():
                    for length in range(min(3, len(plain) - place) + 1):
                        key = letter, tuple(plain[place : place + length])
                        total = cost + costs[key] + (0 if key in costs else 4 * max(0, length - 1))
                        if place + length not in following or following[place + length][0] > total:
                            following[place + length] = total, place
                best = following
                table.append(best)
            if len(plain) not in best:
                continue
            place, parts = len(plain), []
            for column in reversed(table[1:]):
                before = column[place][1]
                parts.append("".join(phonemes[before:place]))
                counts[word[len(word) - len(parts)], tuple(plain[before:place])] += 1
                place = before
            result.append((word, parts[::-1]))
        totals = Counter()
        for (letter, _), count in counts.items():
            totals[letter] += count
        costs = defaultdict(lambda: 14.0)
        costs |= {key: -log(count / totals[key[0]]) for key, count in counts.items() if count > 3}
    return result


def context(word: str, i: int) -> list[str]:
    return [word[i + place] if 0 <= i + place < len(word) else END for place in PLACES]


def tree(examples: list, depth: int = 0):
    """The most frequent phonemes of examples, and branches where letters further away change them."""
    counts = Counter(phonemes for _, phonemes in examples)
    best = min(counts, key=lambda phonemes: (-counts[phonemes], phonemes))
    branches = {}
    if depth < len(PLACES) and len(counts) > 1:
        groups = defaultdict(list)
        for example in examples:
            groups[example[0][depth]].append(example)
        for letter, group in sorted(groups.items()):
            # A single example is no rule.
            if depth == 0 or len(group) > 1:
                branch = tree(group, depth + 1)
                if branch[1] or branch[0] != best:
                    branches[letter] = branch
    return best, branches


def pronounce(rules, word: str) -> str:
    parts = []
    for i in range(len(word)):
        (best, branches) = rules
        for letter in context(word, i):
            if letter not in branches:
                break
            best, branches = branches[letter]
        parts.append(best)
    return "".join(parts)


def main():
    folder = Path(sys.argv[1])
    gold, silver = (json.loads((folder / f"us_{name}.json").read_text()) for name in ("gold", "silver"))
    words = {}
    for word, value in gold.items():
        value = value if isinstance(value, str) else value["DEFAULT"]
        spelled = word.lower()
        if spelled.isascii() and spelled.isalpha() and len(word) > 2 and word != word.upper() and value:
            words[spelled] = units(value)
    pairs = aligned(sorted(words.items()))
    held_out = [pair for i, pair in enumerate(pairs) if i % 50 == 7]
    kept = [pair for i, pair in enumerate(pairs) if i % 50 != 7]
    rules = tree([(context(word, i), part) for word, parts in kept for i, part in enumerate(parts)])
    plain = lambda text: text.replace("ˈ", "").replace("ˌ", "")
    found = [(pronounce(rules, word), "".join(parts)) for word, parts in held_out]
    print("of the words held out, the rules find", sum(a == b for a, b in found) / len(found))
    print("and but for the stress", sum(plain(a) == plain(b) for a, b in found) / len(found))
    classes = sorted({part for _, parts in pairs for part in parts})
    numbers = {part: i for i, part in enumerate(classes)}

    def node(rule) -> bytes:
        best, branches = rule
        rest = b"".join(letter.encode() + node(branch) for letter, branch in branches.items())
        return struct.pack("<HB", numbers[best], len(branches)) + rest

    dictionary = zlib.compress(lines(gold, silver), 9)
    letters = zlib.compress("\n".join(classes).encode() + b"\n\n" + node(rules), 9)
    OUTPUT.write_bytes(struct.pack("<I", len(dictionary)) + dictionary + letters)
    print(len(pairs), "of", len(words), "words;", len(dictionary), "+", len(letters), "bytes")


if __name__ == "__main__":
    main()
