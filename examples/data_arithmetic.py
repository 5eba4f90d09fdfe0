"""One- and two-step arithmetic word problems, answered in GSM8K's calculator notation.

Owns: the templates, the random filling, and the split. Test problems come from templates,
names and operand tuples that no training problem uses. Every answer is a line per step and a
final line, as in GSM8K but without its prose, so that one right answer has one spelling:

    3*4 = <<3*4=12>>12
    12+5 = <<12+5=17>>17
    #### 17

With --data-dir (the published GSM8K files, MIT) short problems of its training set, reduced to
the same notation, are mixed in: real wording is more varied than any set of templates.

In a template `[a|b]` picks one alternative, capitals stand for fillers and the lower-case
letters in braces for numbers. Steps name those numbers; `r` is the result of the step before.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from splits import write_jsonl, write_splits

Template = tuple[str, str]

TRAIN_TEMPLATES: tuple[Template, ...] = (
    ("{N} [has|owns|keeps] {a} {O}. {M} gives {N} {b} more. How many {O} does {N} have "
     "now?", "a+b"),
    ("{N} found {a} {O} in the morning and {b} in the afternoon. How many {O} is that?", "a+b"),
    ("There are {a} {O} [on the table|in the box]. {N} adds {b}. How many are there now?", "a+b"),
    ("{N} read {a} pages [yesterday|on Monday] and {b} pages today. How many pages is "
     "that?", "a+b"),
    ("{N} is {a} years old. How old will {N} be in {b} years?", "a+b"),
    ("{N} had {a} {O} and [lost|gave away|sold] {b} of them. How many {O} are left?", "a-b"),
    ("A bus carried {a} people. At a stop {b} got off. How many people are on the bus?", "a-b"),
    ("{N} had ${a} and spent ${b} on {O}. How much money is left?", "a-b"),
    ("{N} has {a} {O}. {M} has {b} {O}. How many more {O} does {N} have than {M}?", "a-b"),
    ("A book has {a} pages. {N} has read {b} of them. How many pages [remain|are left]?", "a-b"),
    ("{N} buys {a} {C} of {O} with {b} {O} in each. How many {O} is that [in "
     "all|altogether]?", "a*b"),
    ("One [ticket|toy|cup|hat] costs ${a}. How much do {b} of them cost?", "a*b"),
    ("{N} walks {a} miles [a day|every day]. How far does {N} walk in {b} days?", "a*b"),
    ("A garden has {a} rows of {b} {O}. How many {O} are in the garden?", "a*b"),
    ("{N} earns ${a} an hour and works {b} hours. How much does {N} earn?", "a*b"),
    ("{N} [shares|splits] {a} {O} equally among {b} friends. How many does each friend "
     "get?", "a/b"),
    ("{a} {O} are packed into {C} of {b}. How many {C} are [needed|filled]?", "a/b"),
    ("{N} saves ${b} a week. How many weeks until {N} has ${a}?", "a/b"),
    ("A rope of {a} meters is cut into {b} equal pieces. How long is each piece?", "a/b"),
    ("{N} has {a} {O}, buys {b} more and then gives {c} to {M}. How many are left?", "a+b;r-c"),
    ("{N} had {a} {O}. {N} lost {b} and then found {c}. How many {O} does {N} have?", "a-b;r+c"),
    ("A shop had {a} {O}. It sold {b} on Monday and {c} on Tuesday. How many are left?", "a-b;r-c"),
    ("{N} picked {a} {O}, {M} picked {b} and a friend picked {c}. How many in total?", "a+b;r+c"),
    ("{N} buys {a} {C} of {b} {O} and already had {c} {O}. How many {O} are there now?", "a*b;r+c"),
    ("{N} has {a} {C} with {b} {O} each. {N} [sells|eats|uses] {c}. How many are left?", "a*b;r-c"),
    ("{N} buys {a} {O} at ${b} each and pays ${c} for delivery. What is the total "
     "cost?", "a*b;r+c"),
    ("A box holds {a} {O}. {N} fills {b} boxes and {M} fills {c} more boxes with the same number. "
     "How many boxes are there, and how many {O} do they hold?", "b+c;r*a"),
    ("{N} had {a} {O} and got {b} more. {N} puts them into {C} of {c}. How many {C}?", "a+b;r/c"),
    ("{N} has {a} {O} but {b} are broken. The rest go to {c} friends equally. "
     "How many does each get?", "a-b;r/c"),
    ("{N} works {a} hours a day for {b} days at ${c} an hour. How much does {N} earn?", "a*b;r*c"),
    ("{a} {O} are shared by {b} children. {N} then gets {c} more. How many does {N} "
     "have?", "a/b;r+c"),
    ("{N} splits {a} {O} into {b} equal groups and takes {c} from one group. "
     "How many are left in that group?", "a/b;r-c"),
    ("{b} {O} cost ${a}. How much do {c} {O} cost?", "a/b;r*c"),
    ("{N} has {a} {O}. {M} has {b} times as many. How many {O} do they have together?", "a*b;r+a"),
    ("{N} has {a} {O}. {M} has {b} more than {N}. How many {O} do they have together?", "a+b;r+a"),
    ("{N} baked {a} {O}. {M} baked {b} fewer. How many did they bake [together|in "
     "total]?", "a-b;r+a"),
    ("A class has {a} boys and {b} girls. Each [child|pupil] brings {c} {O}. How many "
     "{O}?", "a+b;r*c"),
    ("{N} runs {a} miles on weekdays, each of {b} days, and {c} miles on Sunday. "
     "How many miles is that a week?", "a*b;r+c"),
    ("A farmer has {a} cows and {b} [sheep|goats|hens]. {c} animals are sold. How many "
     "stay?", "a+b;r-c"),
    ("A train has {a} cars with {b} seats each. {c} seats are taken. How many are "
     "free?", "a*b;r-c"),
    ("{N} scored {a} points, {b} more than {M}. How many points did {M} score?", "a-b"),
    ("{N} needs {a} {O} and has {b}. How many more {O} does {N} need?", "a-b"),
    ("Each of {a} [children|guests|teams] gets {b} {O}. How many {O} are given out?", "a*b"),
    ("{N} pays for {a} {O} at ${b} each with ${c}. How much change does {N} get?", "a*b;c-r"),
    ("{N} wants ${c} and has earned ${a} and ${b}. How much is missing?", "a+b;c-r"),
)  # fmt: skip

TEST_TEMPLATES: tuple[Template, ...] = (
    ("At a fair {N} won {a} {O} and later {b} more. What is the number of {O} won?", "a+b"),
    ("A tank held {a} liters of water. {b} liters leaked out. How many liters does it "
     "hold?", "a-b"),
    ("{N} plants {a} seeds in each of {b} pots. How many seeds does {N} plant?", "a*b"),
    ("{N} lines up {a} chairs in {b} equal rows. How many chairs are in a row?", "a/b"),
    ("{N} drew {a} pictures in May, {b} in June and {c} in July. How many pictures is "
     "that?", "a+b;r+c"),
    ("A library had {a} novels. It bought {b} and threw away {c}. How many does it "
     "have?", "a+b;r-c"),
    ("A baker makes {a} trays of {b} rolls and sells {c} rolls. How many rolls remain?", "a*b;r-c"),
    ("{N} packs {a} bags with {b} {O} each and one bag with {c}. How many {O} are "
     "packed?", "a*b;r+c"),
    ("{N} catches {a} fish and throws {b} back. {c} cats share the rest equally. "
     "How many fish does each cat get?", "a-b;r/c"),
    ("{N} had {a} stamps. {N} mailed {b} of them, then bought {c} new ones. "
     "How many stamps does {N} have?", "a-b;r+c"),
    ("{N} is {a} years old and {M} is {b} years older. What is the sum of their ages?", "a+b;r+a"),
    ("{N} cuts {a} apples into {b} slices each and gives every guest {c} slices. "
     "How many guests are served?", "a*b;r/c"),
)  # fmt: skip

TRAIN_NAMES = (
    "Anna", "Ben", "Carla", "David", "Ella", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate",
    "Liam", "Maria", "Noah", "Olivia", "Peter", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor",
    "Wendy", "Xander", "Yara", "Zoe", "Ahmed", "Bella", "Carlos", "Diana", "Emil", "Fatima",
    "George", "Hana", "Igor", "Julia", "Ken", "Lena", "Marco", "Nina",
)  # fmt: skip
TEST_NAMES = (
    "Abigail", "Bruno", "Chloe", "Derek", "Esther", "Felix", "Gina", "Hugo", "Irene", "Jonas",
)  # fmt: skip
THINGS = (
    "apples", "marbles", "books", "pencils", "stickers", "cookies", "coins", "shells", "balloons",
    "eggs", "cards", "buttons", "oranges", "candies", "flowers", "stones", "toys", "cups",
    "beads", "muffins", "tickets", "pens", "lemons", "bottles", "peaches", "crayons", "ribbons",
    "nuts", "photos", "badges",
)  # fmt: skip
CONTAINERS = ("boxes", "bags", "packs", "baskets", "jars", "crates")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y if y and x % y == 0 else 0,
}


def solve(steps: str, numbers: dict[str, int]) -> list[tuple[str, int]] | None:
    """Work the steps out; None if a result is not a positive whole number below 1,000."""
    known, worked = dict(numbers), []
    for step in steps.split(";"):
        left, right = known[step[0]], known[step[2]]
        result = OPERATIONS[step[1]](left, right)
        if not 0 < result < 1000:
            return None
        worked.append((f"{left}{step[1]}{right}", result))
        known["r"] = result
    return worked


def write_answer(worked: Sequence[tuple[str, int]]) -> str:
    """Spell worked steps in GSM8K's calculator notation."""
    lines = [f"{expression} = <<{expression}={result}>>{result}" for expression, result in worked]
    return "\n".join([*lines, f"#### {worked[-1][1]}"])


def number_range(letter: str, steps: str) -> tuple[int, int]:
    """Choose the size of a number: small where it multiplies or divides, up to 99 elsewhere."""
    if re.search(rf"/{letter}", steps):
        return 2, 10
    if re.search(rf"{letter}/", steps):
        return 6, 90
    if re.search(rf"\*{letter}|{letter}\*", steps):
        return 2, 12
    return 2, 99


def is_test_tuple(numbers: dict[str, int]) -> bool:
    """One operand tuple in eight belongs to the test set, whatever the template."""
    return zlib.crc32(",".join(str(n) for n in numbers.values()).encode()) % 8 == 0


def draw_numbers(steps: str, test: bool, rng: random.Random) -> dict[str, int]:
    """Draw operands until the steps work out and the tuple lies on the right side of the split."""
    letters = sorted({letter for letter in steps if letter in "abc"})
    while True:
        numbers = {letter: rng.randint(*number_range(letter, steps)) for letter in letters}
        if solve(steps, numbers) and is_test_tuple(numbers) == test:
            return numbers


def make_problem(template: Template, test: bool, rng: random.Random) -> dict[str, str]:
    """Fill one template."""
    text, steps = template
    name, friend = rng.sample(TEST_NAMES if test else TRAIN_NAMES, 2)
    numbers = draw_numbers(steps, test, rng)
    chosen = re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match[1].split("|")), text)
    fillers = {"N": name, "M": friend, "O": rng.choice(THINGS), "C": rng.choice(CONTAINERS)}
    worked = solve(steps, numbers)
    assert worked is not None
    return {"prompt": chosen.format(**fillers, **numbers), "answer": write_answer(worked)}


def generate(test: bool, count: int, seed: int) -> list[dict[str, str]]:
    """Generate distinct problems, going round the templates so that each is equally frequent."""
    rng = random.Random(f"arithmetic/{seed}/{test}")
    templates = TEST_TEMPLATES if test else TRAIN_TEMPLATES
    problems: dict[str, dict[str, str]] = {}
    turn = 0
    while len(problems) < count:
        problem = make_problem(templates[turn % len(templates)], test, rng)
        problems[problem["prompt"]] = problem
        turn += 1
    return list(problems.values())


def read_gsm8k(path: Path) -> list[dict[str, str]]:
    """Read GSM8K lines as they are, prose included."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return [{"prompt": line["question"].strip(), "answer": line["answer"]} for line in lines]


def reduce_gsm8k(path: Path, most_steps: int) -> list[dict[str, str]]:
    """Read GSM8K lines and keep, of each answer, its calculator annotations and final number.

    Problems without annotations, with more than `most_steps`, or whose last annotation is not
    the final answer are left out: their reduced answer would not follow from its own lines.
    """
    problems = []
    for line in read_gsm8k(path):
        final = line["answer"].rsplit("#### ", 1)[1].replace(",", "")
        steps = re.findall(r"<<([^=<>]+)=([^=<>]+)>>", line["answer"])
        if steps and len(steps) <= most_steps and steps[-1][1] == final:
            lines = [f"{left} = <<{left}={right}>>{right}" for left, right in steps]
            answer = "\n".join([*lines, f"#### {final}"])
            problems.append({"prompt": line["prompt"], "answer": answer})
    return problems


def main() -> None:
    """Write the training and test sets, and GSM8K's test set as it is and in this notation."""
    parser = argparse.ArgumentParser(description="arithmetic word problems as chat JSONL")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, help="GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--train", type=int, default=3000, help="generated problems")
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--real", type=int, default=900, help="GSM8K training problems")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train = generate(False, arguments.train, arguments.seed)
    if arguments.data_dir:
        train += reduce_gsm8k(arguments.data_dir / "train.jsonl", 3)[: arguments.real]
        real_test = arguments.data_dir / "test.jsonl"
        write_jsonl(arguments.out / "gsm8k.test.jsonl", read_gsm8k(real_test))
        write_jsonl(arguments.out / "gsm8k_steps.test.jsonl", reduce_gsm8k(real_test, 99))
    test = generate(True, arguments.test, arguments.seed)
    write_splits(arguments.out, "arithmetic", train, test)


if __name__ == "__main__":
    main()
