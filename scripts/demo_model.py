"""Trains the demo chat model and writes it to core/demo.

The model is a Llama of about one million parameters. It learns, from text that
this script makes up, to greet, to say who it is, to add and subtract up to 20,
to compare and count, to spell some words backwards, and a closed set of facts about
days, months, opposites, colours and animals; asked anything else, it answers
that it is only a demo. Training runs in float32 on the CPU; the result is
quantized to 8 bits, and the folder stays well below 2 MB.

The script then asks the quantized model every fact, prints how many answers of
each category are right, and writes tests/fixtures/demo.json: questions with the
answers that the facts say are right. It fails, and leaves that file as it was,
if the model answers one of those questions differently.

    pip install mlx mlx-lm tokenizers numpy
    python scripts/demo_model.py

It takes 20 to 30 minutes on two cores with a fast BLAS, such as Accelerate.
The BLAS in MLX's wheels for Linux is some thirty times slower than OpenBLAS, so
preload the latter there. All seeds are fixed: the same machine with the same
versions makes the same model again.
"""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy
from mlx.utils import tree_flatten
from mlx_lm import generate, load
from mlx_lm.models import llama
from mlx_lm.utils import quantize_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
MODEL_FOLDER = ROOT / "core" / "demo"
FIXTURE = ROOT / "tests" / "fixtures" / "demo.json"

SEED = 7
STEPS = 6500
WARMUP_STEPS = 100
PEAK_LEARNING_RATE = 3e-3
# The batches, in turn: rows, tokens of a row, and the largest number of turns in a row.
BATCH_SHAPES = [(24, 40, 1), (8, 112, 100), (24, 40, 1), (2, 448, 100)]

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Fact:
    """An answer, the ways to ask for it, and the way to ask for it in short when
    another fact of the same category came just before."""

    category: str
    questions: list[str]
    answer: str
    follow_up: str | None = None


def either(*alternatives):
    """Splits texts that list alternatives between bars."""
    return "|".join(alternatives).replace("\n", "|").strip("|").split("|")


# --- What the model knows ---------------------------------------------------

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = {
    "January": "31 days",
    "February": "28 days, or 29 in a leap year",
    "March": "31 days",
    "April": "30 days",
    "May": "31 days",
    "June": "30 days",
    "July": "31 days",
    "August": "31 days",
    "September": "30 days",
    "October": "31 days",
    "November": "30 days",
    "December": "31 days",
}
OPPOSITES = """
hot cold, big small, tall short, fast slow, up down, left right, open closed,
day night, black white, good bad, happy sad, old young, rich poor, hard soft,
wet dry, full empty, early late, high low, loud quiet, strong weak, thick thin,
wide narrow, clean dirty, near far, inside outside, light dark, easy difficult,
true false, begin end, buy sell, win lose, push pull, give take, love hate,
first last, yes no, always never, summer winter, north south, east west,
question answer, friend enemy, awake asleep, cheap expensive, sweet sour,
smooth rough, deep shallow, warm cool, safe dangerous, alive dead, more less
"""
COLOURS = {
    "blue": ["the sky", "the sea", "a sapphire", "a blueberry"],
    "green": ["grass", "a frog", "a leaf", "a cucumber", "an emerald", "broccoli"],
    "white": ["snow", "milk", "a swan", "a cloud", "rice", "a polar bear"],
    "yellow": ["a lemon", "a banana", "the sun", "butter"],
    "red": ["blood", "a strawberry", "a tomato", "a cherry", "a ruby", "a fire engine"],
    "orange": ["a carrot", "an orange", "a pumpkin"],
    "black": ["coal", "a crow", "ink"],
    "brown": ["chocolate", "coffee", "mud", "a chestnut"],
    "grey": ["an elephant", "ash", "a dolphin"],
    "pink": ["a flamingo", "a pig"],
    "purple": ["a plum", "lavender"],
}
MIXTURES = [
    ("blue", "yellow", "green"),
    ("red", "yellow", "orange"),
    ("red", "blue", "purple"),
    ("black", "white", "grey"),
    ("red", "white", "pink"),
]
SOUNDS = {
    "cow": "moo",
    "dog": "woof",
    "cat": "meow",
    "sheep": "baa",
    "duck": "quack",
    "horse": "neigh",
    "pig": "oink",
    "bee": "buzz",
    "frog": "ribbit",
    "owl": "hoot",
    "snake": "hiss",
    "mouse": "squeak",
    "crow": "caw",
    "lion": "roar",
}
LEGS = {
    "cow": "4 legs",
    "dog": "4 legs",
    "cat": "4 legs",
    "horse": "4 legs",
    "duck": "2 legs",
    "crow": "2 legs",
    "bee": "6 legs",
    "ant": "6 legs",
    "spider": "8 legs",
    "snake": "no legs",
    "fish": "no legs",
}
SPELLED_WORDS = """
cat dog sun map pen cup hat bed box tree bird book lamp fish milk ship star moon
rain wolf desk door rock sand wind leaf frog king ring road apple bread chair
house mouse plant river stone table train water zebra
""".split()
NAMES = """
Alice Anna Ben Carla David Emma Felix George Hannah Ivan Julia Kai Laura Mia Noah
Olga Paul Rosa Sam Tom Uma Victor Wendy Yuki Zoe
""".split()

GREETINGS = {
    "Hello! How can I help you?": "Hello|Hi|Hey|Hello!|Hi there|Hello Mynah|Greetings",
    "I am fine, thank you. How can I help you?": (
        "How are you?|How are you doing?|Hello, how are you?|How is it going?"
    ),
    "Good morning! How can I help you?": "Good morning|Good morning!|Morning",
    "Good evening! How can I help you?": "Good evening|Good evening!",
    "Good night! Sleep well.": "Good night|Good night!",
    "You are welcome!": "Thank you|Thanks|Thank you very much|Thanks a lot|Many thanks",
    "Goodbye! Have a nice day.": "Goodbye|Bye|Bye bye|See you later|See you soon",
    "Nice to meet you too!": "Nice to meet you|Pleased to meet you",
    "All right. What would you like to know?": "OK|Okay|Yes|No|I see|All right",
    "I cannot remember names, sorry.": "What is my name?|Who am I?|Do you know my name?",
    "No problem.": "Sorry|I am sorry|Excuse me",
    "Thank you, that is nice to hear.": (
        "Well done|Good job|Great|Very good|You are great|Correct|Nice"
    ),
}
IDENTITY = {
    "I am Mynah, a tiny demo model that is embedded in the library.": (
        "Who are you?|What is your name?|What are you?|Tell me about yourself.|Introduce yourself."
    ),
    "I can add, subtract, compare, count and spell some words backwards. "
    "I also know days, months, opposites, colours and animals.": (
        "What can you do?|What do you know?|How can you help me?|Help|What can I ask you?"
        "|What should I ask?"
    ),
    "I am very small: less than two megabytes.": (
        "How big are you?|How large are you?|What is your size?|How small are you?"
    ),
    "No, I am only a tiny language model.": (
        "Are you a human?|Are you a person?|Are you human?|Are you real?|Are you alive?"
        "|Are you a bird?|Do you have feelings?"
    ),
    "A small script trained me on text that it made up.": (
        "Who made you?|Who trained you?|How were you made?|How were you trained?|Who created you?"
    ),
    "I run on your own device, with MLX.": (
        "Where do you run?|Where are you?|Do you run on my device?|Do you need the internet?"
        "|Are you in the cloud?"
    ),
    "A mynah is a bird that can talk.": (
        "What is a mynah?|What does Mynah mean?|What kind of bird is a mynah?"
    ),
    "Only a little: I am a tiny demo model.": (
        "Are you smart?|Are you intelligent?|Are you clever?|Do you know everything?"
    ),
    "I only speak a little English.": (
        "What languages do you speak?|Do you speak English?|Do you speak German?"
        "|Do you speak French?"
    ),
    "Why was 6 afraid of 7? Because 7 8 9.": (
        "Tell me a joke.|Do you know a joke?|Make me laugh.|Say something funny."
    ),
    "I have no clock and no calendar, so I do not know.": (
        "What time is it?|What day is it today?|What day is today?|What is the date?"
        "|What year is it?|Which month is it now?"
    ),
}

INTRODUCED = "Nice to meet you! How can I help you?"
UNKNOWN_SPELLING = "I can only spell a few words backwards, such as cat or house."
OUT_OF_RANGE = "I can only add and subtract, and only from 0 to 20."
UNKNOWN = "I am only a tiny demo model. Ask me a sum, a day, a month, an opposite or a colour."
UNKNOWN_QUESTIONS = either("""
What is the capital of {}?|Who is {}?|Who was {}?|What is {}?|What is a {}?|Where is {}?
How old is {}?|How tall is {}?|How far is {}?|How does {} work?|Why is {} so popular?
Tell me about {}.|Explain {}.|Describe {} to me.|Define {}.|Write a poem about {}.
Write a story about {}.|Write a letter to {}.|Translate {} into French.|Summarize {}.
What do you think about {}?|Do you like {}?|Can you see {}?|Have you heard of {}?
When did {} begin?|When was {} born?|How much does {} cost?|How do I cook {}?
What is the weather in {}?|Who wrote {}?|Who won {}?|Give me a recipe for {}.
What is the population of {}?|What is the meaning of {}?|Is {} dangerous?|Is {} good for me?
Play {}.|Buy {} for me.|Find {}.|Show me {}.|How many people live in {}?|I like {}.
I want to learn {}.|Write some code for {}.|How do I fix {}?|What is the best {}?|{}
""")
SUBJECTS = either("""
France|Portugal|Japan|Brazil|Egypt|Berlin|London|Paris|New York|Einstein|Shakespeare|Mozart
Napoleon|the president|the queen|football|tennis|chess|music|jazz|history|physics|algebra
chemistry|philosophy|freedom|peace|war|money|gravity|electricity|the universe|the ocean
the moon|Mars|a volcano|a computer|a telephone|a car|a bicycle|an airplane|the internet
Python|Rust|a compiler|a database|pizza|pasta|soup|cheese|wine|tea|bread|dinosaurs|tigers
penguins|whales|robots|artificial intelligence|machine learning|politics|the economy|taxes
the stock market|medicine|a headache|the future|my homework|my dog|my mother|a holiday
the world cup|the Roman empire|quantum mechanics|the meaning of life|a guitar|a movie
""")
SYSTEM_MESSAGES = [
    "You are a helpful assistant.",
    "You are Mynah.",
    "You are a friendly chat model. Answer in short sentences.",
    "Be brief.",
    "Answer the questions of the user.",
    "You are a tiny demo model. Be polite and helpful.",
]


def closed_facts():
    """Everything that the model should answer without a mistake."""
    facts = []

    def add(category, questions, answer, follow_up=None):
        facts.append(Fact(category, either(questions), answer, follow_up))

    for answer, questions in GREETINGS.items():
        add("greeting", questions, answer)
    for answer, questions in IDENTITY.items():
        add("identity", questions, answer)

    for a in range(21):
        for b in range(21):
            if a + b <= 20:
                add("sum", ask_sum(a, b), f"{a} + {b} = {a + b}.", f"And {a} + {b}?")
            else:
                add("out of range", ask_sum(a, b), OUT_OF_RANGE)
            if a >= b:
                add("difference", ask_difference(a, b), f"{a} - {b} = {a - b}.", f"And {a} - {b}?")
            else:
                add("out of range", ask_difference(a, b), OUT_OF_RANGE)
            if a != b:
                add(
                    "comparison",
                    f"Which is bigger, {a} or {b}?|Which number is bigger, {a} or {b}?"
                    f"|What is bigger, {a} or {b}?|Which is larger, {a} or {b}?"
                    f"|Which is greater, {a} or {b}?|{a} or {b}, which is bigger?",
                    f"{max(a, b)} is bigger than {min(a, b)}.",
                    f"And {a} or {b}?",
                )

    for a in range(21):
        add(
            "counting",
            f"Is {a} even or odd?|Is {a} odd or even?|Is {a} an even number?|Is {a} an odd number?"
            f"|Is the number {a} even or odd?",
            f"{a} is {'odd' if a % 2 else 'even'}.",
        )
        if a < 20:
            add(
                "counting",
                f"What number comes after {a}?|What comes after {a}?|Which number follows {a}?",
                f"{a + 1} comes after {a}.",
                f"And after {a}?",
            )
        if a > 0:
            add(
                "counting",
                f"What number comes before {a}?|What comes before {a}?",
                f"{a - 1} comes before {a}.",
                f"And before {a}?",
            )
            add(
                "counting",
                f"Count to {a}.|Count from 1 to {a}.|Can you count to {a}?|Count up to {a}.",
                listed(range(1, a + 1)),
            )
        if 0 < a <= 10:
            add(
                "counting",
                f"Count down from {a}.|Count backwards from {a}.|Count down from {a} to 0.",
                listed(range(a, -1, -1)),
            )
        for b in range(a + 1, min(a + 9, 20) + 1):
            if a != 1:
                add(
                    "counting",
                    f"Count from {a} to {b}.|Can you count from {a} to {b}?"
                    f"|Count up from {a} to {b}.",
                    listed(range(a, b + 1)),
                )

    for day, following in neighbours(DAYS):
        add_neighbours(add, "day", day, following)
        add(
            "days",
            f"If today is {day}, what day is tomorrow?|Today is {day}. What day is tomorrow?"
            f"|What day is tomorrow if today is {day}?",
            f"If today is {day}, tomorrow is {following}.",
        )
        add(
            "days",
            f"If today is {following}, what day was yesterday?"
            f"|Today is {following}. What day was yesterday?"
            f"|What day was yesterday if today is {following}?",
            f"If today is {following}, yesterday was {day}.",
        )
    add(
        "days",
        "How many days are in a week?|How many days does a week have?|How long is a week?",
        "A week has 7 days.",
    )
    add(
        "days",
        "Name the days of the week.|What are the days of the week?|List the days of the week.",
        listed(DAYS),
    )
    add(
        "days",
        "Which days are the weekend?|When is the weekend?|What days are the weekend?",
        "Saturday and Sunday are the weekend.",
    )

    for month, following in neighbours(list(MONTHS)):
        add_neighbours(add, "month", month, following)
    for (month, length), ordinal in zip(MONTHS.items(), ORDINALS):
        add(
            "months",
            f"How many days are in {month}?|How many days does {month} have?"
            f"|How many days has {month}?|How long is {month}?|How many days are there in {month}?",
            f"{month} has {length}.",
            f"And in {month}?",
        )
        add(
            "months",
            f"What is the {ordinal} month of the year?|Which month is the {ordinal}?"
            f"|What is the {ordinal} month?",
            f"{month} is the {ordinal} month.",
        )
    add(
        "months",
        "How many months are in a year?|How many months does a year have?",
        "A year has 12 months.",
    )
    add(
        "months",
        "Name the months of the year.|What are the months of the year?|List the months.",
        listed(MONTHS),
    )

    for pair in OPPOSITES.split(","):
        for word, opposite in [pair.split(), reversed(pair.split())]:
            add(
                "opposites",
                f"What is the opposite of {word}?|Opposite of {word}"
                f'|What is the opposite of "{word}"?|Give me the opposite of {word}.'
                f"|Tell me the opposite of {word}."
                f"|Do you know the opposite of {word}?|{capitalize(word)} is the opposite of what?",
                f"The opposite of {word} is {opposite}.",
                f"And of {word}?",
            )

    for colour, things in COLOURS.items():
        for thing in things:
            add(
                "colours",
                f"What colour is {thing}?|What color is {thing}?|What is the colour of {thing}?"
                f"|What is the color of {thing}?|Which colour is {thing}?"
                f"|Tell me the colour of {thing}.",
                f"{capitalize(thing)} is {colour}.",
                f"And {thing}?",
            )
    for first, second, mixture in MIXTURES:
        for a, b in [(first, second), (second, first)]:
            add(
                "colours",
                f"What do you get if you mix {a} and {b}?|Mix {a} and {b}."
                f"|What colour do {a} and {b} make?|What color do {a} and {b} make?",
                f"{capitalize(a)} and {b} make {mixture}.",
                f"And {a} and {b}?",
            )

    for animal, sound in SOUNDS.items():
        animal = with_article(animal)
        add(
            "animals",
            f"What does {animal} say?|What sound does {animal} make?"
            f"|Which sound does {animal} make?|What noise does {animal} make?",
            f"{capitalize(animal)} says {sound}.",
            f"And {animal}?",
        )
    for animal, legs in LEGS.items():
        animal = with_article(animal)
        add(
            "animals",
            f"How many legs does {animal} have?|How many legs has {animal}?",
            f"{capitalize(animal)} has {legs}.",
        )

    return facts + [backwards(word) for word in SPELLED_WORDS]


def ask_sum(a, b):
    return (
        f"What is {a} + {b}?|{a} + {b}|{a} plus {b}|What is {a} plus {b}?|{a}+{b}"
        f"|How much is {a} + {b}?|{a} + {b} =|Calculate {a} + {b}.|Add {a} and {b}."
        f"|What is the sum of {a} and {b}?|What is {in_words(a)} plus {in_words(b)}?"
    )


def ask_difference(a, b):
    return (
        f"What is {a} - {b}?|{a} - {b}|{a} minus {b}|What is {a} minus {b}?|{a}-{b}"
        f"|How much is {a} - {b}?|{a} - {b} =|Calculate {a} - {b}.|Subtract {b} from {a}."
        f"|What is the difference between {a} and {b}?|What is {in_words(a)} minus {in_words(b)}?"
    )


def ask_product_or_quotient(a, b):
    return (
        f"What is {a} * {b}?|{a} * {b}|What is {a} times {b}?|Multiply {a} by {b}."
        f"|What is {a} / {b}?|{a} divided by {b}"
    )


def add_neighbours(add, unit, name, following):
    add(
        unit + "s",
        f"What {unit} comes after {name}?|Which {unit} comes after {name}?|What comes after {name}?"
        f"|What is the {unit} after {name}?|Which {unit} follows {name}?|What is after {name}?",
        f"{following} comes after {name}.",
        f"And after {name}?",
    )
    add(
        unit + "s",
        f"What {unit} comes before {following}?|Which {unit} comes before {following}?"
        f"|What comes before {following}?|What is the {unit} before {following}?"
        f"|What is before {following}?",
        f"{name} comes before {following}.",
        f"And before {following}?",
    )


def backwards(word):
    questions = either(
        f'Spell {word} backwards.|Spell "{word}" backwards.|Spell the word {word} backwards.'
        f"|What is {word} backwards?|Write {word} backwards.|How do you spell {word} backwards?"
        f"|Reverse the word {word}.|{word} backwards"
    )
    return Fact("backwards", questions, f'"{word}" backwards is "{word[::-1]}".', f"And {word}?")


def introduction(name):
    questions = either(
        f"My name is {name}.|I am {name}.|I'm {name}.|Hello, my name is {name}.|Hi, I am {name}."
    )
    return Fact("greeting", questions, INTRODUCED)


def neighbours(names):
    return zip(names, names[1:] + names[:1])


def listed(items):
    return ", ".join(map(str, items)) + "."


def in_words(number):
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def capitalize(text):
    return text[0].upper() + text[1:]


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


# --- Conversations ----------------------------------------------------------

# How often each category is drawn, by the amount to learn.
WEIGHTS = {
    "greeting": 5,
    "identity": 5,
    "sum": 14,
    "difference": 15,
    "comparison": 8,
    "counting": 10,
    "days": 5,
    "months": 8,
    "opposites": 9,
    "colours": 6,
    "animals": 4,
    "backwards": 8,
    "out of range": 18,
    "unknown": 12,
}


class Speaker:
    """Draws facts, their phrasings and whole chats at random."""

    def __init__(self, facts, seed):
        self.random = numpy.random.default_rng(seed)
        self.facts = defaultdict(list)
        for fact in facts:
            self.facts[fact.category].append(fact)
        self.categories = list(WEIGHTS)
        weights = numpy.array(list(WEIGHTS.values()), float)
        self.thresholds = numpy.cumsum(weights / weights.sum())

    def chance(self, probability):
        return self.random.random() < probability

    def choice(self, options):
        return options[self.random.integers(len(options))]

    def category(self):
        return self.categories[numpy.searchsorted(self.thresholds, self.random.random())]

    def word(self):
        """A made-up word, mostly one that can be pronounced."""
        length = self.random.integers(3, 7)
        if self.chance(0.3):
            return "".join(self.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
        letters = ["aeiou", "bcdfghjklmnprstvwz"]
        start = self.random.integers(2)
        return "".join(self.choice(letters[(start + i) % 2]) for i in range(length))

    def fact(self, category):
        match category:
            case "greeting" if self.chance(0.3):
                return introduction(self.choice(NAMES) if self.chance(0.5) else self.word())
            case "out of range" if self.chance(0.4):
                return self.beyond()
            case "unknown":
                return self.unknown()
        return self.choice(self.facts[category])

    def beyond(self):
        if self.chance(0.5):
            a, b = (int(number) for number in self.random.integers(0, 101, 2))
            questions = ask_product_or_quotient(a, b)
        else:
            large = int(self.random.integers(21, self.choice([40, 100, 1000])))
            other = int(self.random.integers(0, self.choice([21, 100])))
            a, b = self.choice([(large, other), (other, large)])
            questions = self.choice([ask_sum, ask_difference])(a, b)
        return Fact("out of range", either(questions), OUT_OF_RANGE)

    def unknown(self):
        kind = self.random.integers(10)
        subject = self.choice(SUBJECTS) if self.chance(0.7) else self.word()
        if kind == 0:
            questions = f"What is the opposite of {subject}?|Opposite of {subject}"
            return Fact("unknown", either(questions), "I do not know the opposite of that.")
        if kind == 1:
            questions = (
                f"What colour is {subject}?|What color is {subject}?"
                f"|What is the colour of {subject}?"
            )
            return Fact("unknown", either(questions), "I do not know the colour of that.")
        if kind == 2:
            animal = with_article(self.word())
            questions = (
                f"What does {animal} say?|What sound does {animal} make?"
                f"|How many legs does {animal} have?"
            )
            return Fact("unknown", either(questions), "I do not know that animal.")
        if kind == 3:
            return Fact("unknown", backwards(self.word()).questions, UNKNOWN_SPELLING)
        return Fact("unknown", [self.choice(UNKNOWN_QUESTIONS).format(subject)], UNKNOWN)

    def phrase(self, question):
        """The question as a user in a hurry or a polite user might type it."""
        if self.chance(0.05):
            question = self.choice(["Please: ", "Mynah, ", "Hi! ", "Hello, "]) + question
        if self.chance(0.15):
            question = question.replace("What is", "What's")
        if self.chance(0.25):
            question = question.rstrip("?.!")
        if self.chance(0.25):
            question = question.lower()
        return question

    def system_message(self):
        return self.choice(SYSTEM_MESSAGES) if self.chance(0.15) else None

    def turns(self):
        """An endless chat, as pairs of question and answer."""
        fact = None
        while True:
            if fact and fact.follow_up and self.chance(0.2):
                fact = self.fact(fact.category)
                question = fact.follow_up or fact.questions[0]
            else:
                fact = self.fact(self.category())
                # The first phrasing is the most frequent one.
                question = fact.questions[0] if self.chance(0.25) else self.choice(fact.questions)
            yield self.phrase(question), fact.answer


# --- Tokens -----------------------------------------------------------------


def make_tokenizer(facts):
    """A byte-level BPE that knows whole words or single bytes, nothing between.

    Without merges, a word outside the vocabulary falls apart into its bytes,
    which tells the model that it does not know the word.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = facts + [
        introduction("x"),
        Fact("unknown", [question.format("x") for question in UNKNOWN_QUESTIONS], UNKNOWN),
        Fact("unknown", [], UNKNOWN_SPELLING),
        Fact("out of range", either(ask_product_or_quotient(2, 3)), OUT_OF_RANGE),
    ]
    texts = [text for fact in known for text in fact.questions]
    # The answers of these are spelled letter by letter.
    texts += [fact.answer for fact in known if fact.category != "backwards"]
    texts += [*SYSTEM_MESSAGES, "user", "system", "assistant"]
    speaker = Speaker(facts, SEED)
    texts += [speaker.phrase(text) for text in texts]
    found = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}

    specials = [PAD, TURN_START, TURN_END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(word for word in found if len(word) > 1)
    vocabulary = {token: index for index, token in enumerate(specials + alphabet + words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    return tokenizer


def batches(speaker, tokenizer):
    """Rows of tokens, and where in them the next token is part of an answer."""
    pad = tokenizer.token_to_id(PAD)

    def conversation(length, most_turns):
        tokens, learned = [], []

        def append(text, is_answer):
            ids = tokenizer.encode(text).ids
            tokens.extend(ids)
            learned.extend([is_answer] * len(ids))

        if system := speaker.system_message():
            append(f"{TURN_START}system\n{system}{TURN_END}\n", False)
        for question, answer in islice(speaker.turns(), most_turns):
            start = len(tokens)
            append(f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n", False)
            append(f"{answer}{TURN_END}\n", True)
            if len(tokens) > length:
                del tokens[start:], learned[start:]
                break
        padding = length - len(tokens)
        return tokens + [pad] * padding, learned + [False] * padding

    for rows, length, most_turns in cycle(BATCH_SHAPES):
        conversations = [conversation(length + 1, most_turns) for _ in range(rows)]
        tokens, learned = map(numpy.array, zip(*conversations))
        # Always the same number, some rows twice, so that the step is compiled only once.
        positions = numpy.resize(numpy.flatnonzero(learned[:, 1:]), rows * length // 3)
        yield mx.array(tokens), mx.array(positions)


# --- Training ---------------------------------------------------------------


def train(model, speaker, tokenizer):
    warmup = optimizers.linear_schedule(0, PEAK_LEARNING_RATE, WARMUP_STEPS)
    decay = optimizers.cosine_decay(PEAK_LEARNING_RATE, STEPS - WARMUP_STEPS)
    rate = optimizers.join_schedules([warmup, decay], [WARMUP_STEPS])
    optimizer = optimizers.AdamW(rate, weight_decay=0.01)
    state = [model.state, optimizer.state]

    def loss(tokens, positions):
        hidden = model.model(tokens[:, :-1]).flatten(0, 1)[positions]
        logits = model.model.embed_tokens.as_linear(hidden)
        targets = tokens[:, 1:].flatten()[positions]
        return nn.losses.cross_entropy(logits, targets, reduction="mean")

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens, positions):
        value, gradients = nn.value_and_grad(model, loss)(tokens, positions)
        gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return value

    start = time.time()
    for number, batch in enumerate(islice(batches(speaker, tokenizer), STEPS), 1):
        value = step(*batch)
        mx.eval(state, value)
        if number % 200 == 0:
            seconds = time.time() - start
            print(f"step {number}: loss {value.item():.4f}, {seconds:.0f} s", flush=True)


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model, config, tokenizer):
    MODEL_FOLDER.mkdir(parents=True, exist_ok=True)
    model, config = quantize_model(model, config, group_size=64, bits=8)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(MODEL_FOLDER / "model.safetensors"), weights, {"format": "mlx"})
    write_json(MODEL_FOLDER / "config.json", config)
    tokenizer.save(str(MODEL_FOLDER / "tokenizer.json"))
    write_json(
        MODEL_FOLDER / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "eos_token": TURN_END,
            "pad_token": PAD,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(
        MODEL_FOLDER / "generation_config.json",
        {
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": config["pad_token_id"],
            "do_sample": False,
        },
    )


# --- Questions to the result ------------------------------------------------


def evaluate(facts, ask):
    right, asked = Counter(), Counter()
    for fact in facts:
        question = fact.questions[0]
        answer = ask([{"role": "user", "content": question}])
        asked[fact.category] += 1
        if answer == fact.answer:
            right[fact.category] += 1
        else:
            print(f"wrong: {question} {answer!r} instead of {fact.answer!r}")
    for category, count in asked.items():
        print(f"{category}: {right[category]} of {count}")


def fixture(facts):
    """Asks a few questions of each category, and chats that need their history."""
    by_category = defaultdict(list)
    for fact in facts:
        by_category[fact.category].append(fact)
    entries = []
    for members in by_category.values():
        for index in range(4):
            fact = members[index * len(members) // 4]
            entries.append({"question": fact.questions[index % 2], "answer": fact.answer})
    entries.append({"question": "What is 35 + 48?", "answer": OUT_OF_RANGE})
    entries.append({"question": "My name is Tom.", "answer": INTRODUCED})
    entries.append({"question": "What is the capital of France?", "answer": UNKNOWN})

    conversations = [
        ("Hello", "Hello! How can I help you?", "What is 3 + 4?", "3 + 4 = 7."),
        (
            "What is the opposite of hot?",
            "The opposite of hot is cold.",
            "And of big?",
            "The opposite of big is small.",
        ),
        (
            "What day comes after Monday?",
            "Tuesday comes after Monday.",
            "And after Thursday?",
            "Friday comes after Thursday.",
        ),
    ]
    for question, first_answer, second_question, answer in conversations:
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": first_answer},
            {"role": "user", "content": second_question},
        ]
        entries.append({"messages": messages, "answer": answer})
    messages = [
        {"role": "system", "content": SYSTEM_MESSAGES[0]},
        {"role": "user", "content": "Who are you?"},
    ]
    entries.append({"messages": messages, "answer": next(iter(IDENTITY))})
    return entries


def main():
    mx.set_default_device(mx.cpu)
    mx.random.seed(SEED)
    facts = closed_facts()
    tokenizer = make_tokenizer(facts)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "float32",
    }
    model = llama.Model(llama.ModelArgs.from_dict(config))
    train(model, Speaker(facts, SEED), tokenizer)
    save(model, config, tokenizer)

    model, tokenizer = load(str(MODEL_FOLDER))

    def ask(messages):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return generate(model, tokenizer, prompt, max_tokens=128)

    evaluate(facts, ask)
    entries = fixture(facts)
    for entry in entries:
        messages = entry.get("messages") or [{"role": "user", "content": entry["question"]}]
        answer = ask(messages)
        if answer != entry["answer"]:
            raise SystemExit(f"{messages}: {answer!r} instead of {entry['answer']!r}")
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FIXTURE, entries)


if __name__ == "__main__":
    main()
