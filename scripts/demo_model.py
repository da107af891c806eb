"""Trains the demo chat model and writes it to core/demo.

The model is a Llama of about one million parameters. It learns, from text that
this script makes up, to greet, to say who it is, to add and subtract up to 20,
to compare and count, to spell words backwards, and a closed set of facts about
days, months, opposites, colours and animals; whatever else it is asked, it
answers that it is only a demo. Training runs in float32 on the CPU; the result
is quantized to 8 bits, so that the folder stays below 2 MB.

The script then asks the quantized model every fact, prints the accuracy by
category, and writes tests/fixtures/demo.json, questions with the answers that
the facts say are right. It fails if the model answers one of those differently.

    pip install mlx mlx-lm tokenizers numpy
    python scripts/demo_model.py

It takes about TODO minutes with a fast BLAS, such as Accelerate. The BLAS in
MLX's wheels for Linux is some thirty times slower than OpenBLAS, so preload
the latter there. The seeds are fixed: the same machine and the same versions
give the same model.
"""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
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
STEPS = 8000
PEAK_LEARNING_RATE = 2e-3
# Rows and tokens of the batches, used in turn: first single questions, then
# conversations that fill their row.
BATCH_SHAPES = [(24, 40), (8, 112)]
VOCABULARY_SIZE = 1024

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Fact:
    """An answer, the ways to ask for it, and what to ask right after a fact of
    the same category."""

    category: str
    questions: tuple[str, ...]
    answer: str
    follow_up: str | None = None


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
    "Hello! How can I help you?": ["Hello", "Hi", "Hey", "Hello!", "Hi there", "Hello Mynah", "Greetings"],
    "I am fine, thank you. How can I help you?": ["How are you?", "How are you doing?", "Hello, how are you?", "How is it going?"],
    "Good morning! How can I help you?": ["Good morning", "Good morning!", "Morning"],
    "Good evening! How can I help you?": ["Good evening", "Good evening!"],
    "Good night! Sleep well.": ["Good night", "Good night!"],
    "You are welcome!": ["Thank you", "Thanks", "Thank you very much", "Thanks a lot", "Many thanks"],
    "Goodbye! Have a nice day.": ["Goodbye", "Bye", "Bye bye", "See you later", "See you soon"],
    "Nice to meet you too!": ["Nice to meet you", "Pleased to meet you"],
    "All right. What would you like to know?": ["OK", "Okay", "Yes", "No", "I see", "All right"],
    "No problem.": ["Sorry", "I am sorry", "Excuse me"],
    "Thank you, that is nice to hear.": ["Well done", "Good job", "Great", "Very good", "You are great", "Correct", "Nice"],
}
IDENTITY = {
    "I am Mynah, a tiny demo model that is embedded in the library.": [
        "Who are you?", "What is your name?", "What are you?", "Tell me about yourself.", "Introduce yourself.",
    ],
    "I can add, subtract, compare, count and spell words backwards. I also know days, months, opposites, colours and animals.": [
        "What can you do?", "What do you know?", "How can you help me?", "Help", "What can I ask you?", "What should I ask?",
    ],
    "I am very small: less than two megabytes.": [
        "How big are you?", "How large are you?", "What is your size?", "How small are you?",
    ],
    "No, I am only a tiny language model.": [
        "Are you a human?", "Are you a person?", "Are you human?", "Are you real?", "Are you alive?", "Are you a bird?", "Do you have feelings?",
    ],
    "A small script trained me on text that it made up.": [
        "Who made you?", "Who trained you?", "How were you made?", "How were you trained?", "Who created you?",
    ],
    "I run on your own device, with MLX.": [
        "Where do you run?", "Where are you?", "Do you run on my device?", "Do you need the internet?", "Are you in the cloud?",
    ],
    "A mynah is a bird that can talk.": ["What is a mynah?", "What does Mynah mean?", "What kind of bird is a mynah?"],
    "Only a little: I am a tiny demo model.": ["Are you smart?", "Are you intelligent?", "Are you clever?", "Do you know everything?"],
    "I only speak a little English.": ["What languages do you speak?", "Do you speak English?", "Do you speak German?", "Do you speak French?"],
    "Why was 6 afraid of 7? Because 7 8 9.": ["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."],
    "I have no clock and no calendar, so I do not know.": [
        "What time is it?", "What day is it today?", "What day is today?", "What is the date?", "What year is it?", "Which month is it now?",
    ],
}

OUT_OF_RANGE = "I can only add and subtract, and only from 0 to 20."
UNKNOWN = "I am only a tiny demo model. Ask me a sum, a day, a month, an opposite or a colour."
UNKNOWN_QUESTIONS = """
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
""".replace("\n", "|").strip("|").split("|")
SUBJECTS = """
France|Portugal|Japan|Brazil|Egypt|Berlin|London|Paris|New York|Einstein|Shakespeare|Mozart
Napoleon|the president|the queen|football|tennis|chess|music|jazz|history|physics|algebra
chemistry|philosophy|freedom|peace|war|money|gravity|electricity|the universe|the ocean
the moon|Mars|a volcano|a computer|a telephone|a car|a bicycle|an airplane|the internet
Python|Rust|a compiler|a database|pizza|pasta|soup|cheese|wine|tea|bread|dinosaurs|tigers
penguins|whales|robots|artificial intelligence|machine learning|politics|the economy|taxes
the stock market|medicine|a headache|the future|my homework|my dog|my mother|a holiday
the world cup|the Roman empire|quantum mechanics|the meaning of life|a guitar|a movie
""".replace("\n", "|").strip("|").split("|")
SYSTEM_MESSAGES = [
    "You are a helpful assistant.",
    "You are Mynah.",
    "You are a friendly chat model. Answer in short sentences.",
    "Be brief.",
    "Answer the questions of the user.",
    "You are a tiny demo model. Be polite and helpful.",
]


def capitalize(text):
    return text[0].upper() + text[1:]


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def closed_facts():
    """Everything that the model should answer without a mistake."""
    facts = []

    def add(category, questions, answer, follow_up=None):
        facts.append(Fact(category, tuple(questions), answer, follow_up))

    for answer, questions in GREETINGS.items():
        add("greeting", questions, answer)
    for answer, questions in IDENTITY.items():
        add("identity", questions, answer)

    for a in range(21):
        for b in range(21):
            if a + b <= 20:
                add("sum", ask_sum(a, b), f"{a} + {b} = {a + b}.", f"And {a} + {b}?")
            if a >= b:
                add("difference", ask_difference(a, b), f"{a} - {b} = {a - b}.", f"And {a} - {b}?")
            if a != b:
                questions = [
                    f"Which is bigger, {a} or {b}?",
                    f"Which number is bigger, {a} or {b}?",
                    f"What is bigger, {a} or {b}?",
                    f"Which is larger, {a} or {b}?",
                    f"Which is greater, {a} or {b}?",
                    f"{a} or {b}, which is bigger?",
                ]
                add("comparison", questions, f"{max(a, b)} is bigger than {min(a, b)}.", f"And {a} or {b}?")

    for a in range(21):
        parity = "odd" if a % 2 else "even"
        questions = [
            f"Is {a} even or odd?",
            f"Is {a} odd or even?",
            f"Is {a} an even number?",
            f"Is {a} an odd number?",
            f"Is the number {a} even or odd?",
        ]
        add("counting", questions, f"{a} is {parity}.")
        if a < 20:
            questions = [f"What number comes after {a}?", f"What comes after {a}?", f"Which number follows {a}?"]
            add("counting", questions, f"{a + 1} comes after {a}.", f"And after {a}?")
        if a > 0:
            questions = [f"What number comes before {a}?", f"What comes before {a}?"]
            add("counting", questions, f"{a - 1} comes before {a}.", f"And before {a}?")
            questions = [f"Count to {a}.", f"Count from 1 to {a}.", f"Can you count to {a}?", f"Count up to {a}."]
            add("counting", questions, sequence(range(1, a + 1)))
        if 0 < a <= 10:
            questions = [f"Count down from {a}.", f"Count backwards from {a}.", f"Count down from {a} to 0."]
            add("counting", questions, sequence(range(a, -1, -1)))
        for b in range(a + 1, min(a + 9, 20) + 1):
            if a != 1:
                questions = [f"Count from {a} to {b}.", f"Can you count from {a} to {b}?", f"Count up from {a} to {b}."]
                add("counting", questions, sequence(range(a, b + 1)))

    for day, following in neighbours(DAYS):
        add("days", ask_after("day", day), f"{following} comes after {day}.", f"And after {day}?")
        add("days", ask_before("day", following), f"{day} comes before {following}.", f"And before {following}?")
        questions = [
            f"If today is {day}, what day is tomorrow?",
            f"Today is {day}. What day is tomorrow?",
            f"What day is tomorrow if today is {day}?",
        ]
        add("days", questions, f"If today is {day}, tomorrow is {following}.")
        questions = [
            f"If today is {following}, what day was yesterday?",
            f"Today is {following}. What day was yesterday?",
            f"What day was yesterday if today is {following}?",
        ]
        add("days", questions, f"If today is {following}, yesterday was {day}.")
    questions = ["How many days are in a week?", "How many days does a week have?", "How long is a week?"]
    add("days", questions, "A week has 7 days.")
    questions = ["Name the days of the week.", "What are the days of the week?", "List the days of the week."]
    add("days", questions, ", ".join(DAYS) + ".")
    questions = ["Which days are the weekend?", "When is the weekend?", "What days are the weekend?"]
    add("days", questions, "Saturday and Sunday are the weekend.")

    for month, following in neighbours(list(MONTHS)):
        add("months", ask_after("month", month), f"{following} comes after {month}.", f"And after {month}?")
        add("months", ask_before("month", following), f"{month} comes before {following}.", f"And before {following}?")
    for (month, length), ordinal in zip(MONTHS.items(), ORDINALS):
        questions = [
            f"How many days are in {month}?",
            f"How many days does {month} have?",
            f"How many days has {month}?",
            f"How long is {month}?",
            f"How many days are there in {month}?",
        ]
        add("months", questions, f"{month} has {length}.", f"And in {month}?")
        questions = [
            f"What is the {ordinal} month of the year?",
            f"Which month is the {ordinal}?",
            f"What is the {ordinal} month?",
        ]
        add("months", questions, f"{month} is the {ordinal} month.")
    questions = ["How many months are in a year?", "How many months does a year have?"]
    add("months", questions, "A year has 12 months.")
    questions = ["Name the months of the year.", "What are the months of the year?", "List the months."]
    add("months", questions, ", ".join(MONTHS) + ".")

    for pair in OPPOSITES.split(","):
        first, second = pair.split()
        for word, opposite in [(first, second), (second, first)]:
            questions = [
                f"What is the opposite of {word}?",
                f"Opposite of {word}",
                f"Tell me the opposite of {word}.",
                f'What is the opposite of "{word}"?',
                f"Give me the opposite of {word}.",
                f"Do you know the opposite of {word}?",
                f"{capitalize(word)} is the opposite of what?",
            ]
            add("opposites", questions, f"The opposite of {word} is {opposite}.", f"And of {word}?")

    for colour, things in COLOURS.items():
        for thing in things:
            questions = [
                f"What colour is {thing}?",
                f"What color is {thing}?",
                f"What is the colour of {thing}?",
                f"What is the color of {thing}?",
                f"Which colour is {thing}?",
                f"Tell me the colour of {thing}.",
            ]
            add("colours", questions, f"{capitalize(thing)} is {colour}.", f"And {thing}?")
    for first, second, mixture in MIXTURES:
        for a, b in [(first, second), (second, first)]:
            questions = [
                f"What do you get if you mix {a} and {b}?",
                f"Mix {a} and {b}.",
                f"What colour do {a} and {b} make?",
                f"What color do {a} and {b} make?",
            ]
            add("colours", questions, f"{capitalize(a)} and {b} make {mixture}.", f"And {a} and {b}?")

    for animal, sound in SOUNDS.items():
        animal = with_article(animal)
        questions = [
            f"What does {animal} say?",
            f"What sound does {animal} make?",
            f"Which sound does {animal} make?",
            f"What noise does {animal} make?",
        ]
        add("animals", questions, f"{capitalize(animal)} says {sound}.", f"And {animal}?")
    for animal, legs in LEGS.items():
        animal = with_article(animal)
        questions = [f"How many legs does {animal} have?", f"How many legs has {animal}?"]
        add("animals", questions, f"{capitalize(animal)} has {legs}.")

    for word in SPELLED_WORDS:
        facts.append(backwards(word))
    return facts


def ask_sum(a, b):
    return [
        f"What is {a} + {b}?",
        f"{a} + {b}",
        f"{a} plus {b}",
        f"What is {a} plus {b}?",
        f"{a}+{b}",
        f"How much is {a} + {b}?",
        f"{a} + {b} =",
        f"Calculate {a} + {b}.",
        f"Add {a} and {b}.",
        f"What is the sum of {a} and {b}?",
        *spelled_out("What is {} plus {}?", a, b),
    ]


def ask_difference(a, b):
    return [
        f"What is {a} - {b}?",
        f"{a} - {b}",
        f"{a} minus {b}",
        f"What is {a} minus {b}?",
        f"{a}-{b}",
        f"How much is {a} - {b}?",
        f"{a} - {b} =",
        f"Calculate {a} - {b}.",
        f"Subtract {b} from {a}.",
        f"What is the difference between {a} and {b}?",
        *spelled_out("What is {} minus {}?", a, b),
    ]


def spelled_out(question, a, b):
    return [question.format(NUMBERS[a], NUMBERS[b])] if max(a, b) <= 20 else []


def ask_after(unit, name):
    return [
        f"What {unit} comes after {name}?",
        f"Which {unit} comes after {name}?",
        f"What comes after {name}?",
        f"What is the {unit} after {name}?",
        f"Which {unit} follows {name}?",
        f"What is after {name}?",
    ]


def ask_before(unit, name):
    return [
        f"What {unit} comes before {name}?",
        f"Which {unit} comes before {name}?",
        f"What comes before {name}?",
        f"What is the {unit} before {name}?",
        f"What is before {name}?",
    ]


def neighbours(names):
    return zip(names, names[1:] + names[:1])


def sequence(numbers):
    return ", ".join(map(str, numbers)) + "."


def backwards(word):
    questions = (
        f"Spell {word} backwards.",
        f'Spell "{word}" backwards.',
        f"Spell the word {word} backwards.",
        f"What is {word} backwards?",
        f"Write {word} backwards.",
        f"How do you spell {word} backwards?",
        f"Reverse the word {word}.",
        f"{word} backwards",
    )
    return Fact("backwards", questions, f'"{word}" backwards is "{word[::-1]}".', f"And {word}?")


# --- Conversations ----------------------------------------------------------

# How often each category is drawn: by how much there is to learn in it.
WEIGHTS = {
    "greeting": 4,
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
    "backwards": 14,
    "out of range": 6,
    "unknown": 10,
    "names": 5,
}


class Speaker:
    """Draws questions and whole conversations at random."""

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

    def word(self):
        """A made-up word, mostly one that can be pronounced."""
        length = self.random.integers(3, 7)
        if self.chance(0.3):
            return "".join(self.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
        letters = ["aeiou", "bcdfghjklmnprstvwz"]
        start = self.random.integers(2)
        return "".join(self.choice(letters[(start + i) % 2]) for i in range(length))

    def subject(self):
        return self.choice(SUBJECTS) if self.chance(0.7) else self.word()

    def fact(self, category):
        match category:
            case "backwards" if self.chance(0.6):
                return backwards(self.word())
            case "out of range":
                return self.out_of_range()
            case "unknown":
                return self.unknown()
        return self.choice(self.facts[category])

    def out_of_range(self):
        a, b = (int(n) for n in self.random.integers(0, 21, 2))
        kind = self.choice(["sum", "difference", "large", "product"])
        if kind == "sum":
            a, b = max(a, 1), 21 - max(a, 1) + b % max(a, 1)
            questions = ask_sum(a, b)
        elif kind == "difference":
            a, b = sorted((a, b + 1 if a == b else b))
            questions = ask_difference(a, b)
        elif kind == "large":
            a = int(self.random.integers(21, self.choice([40, 100, 1000])))
            a, b = self.choice([(a, b), (b, a), (a, a + b)])
            questions = self.choice([ask_sum, ask_difference])(a, b)
        else:
            questions = [f"What is {a} * {b}?", f"What is {a} times {b}?", f"{a} / {b}", f"{a} divided by {b}", f"{a} * {b}"]
        return Fact("out of range", tuple(questions), OUT_OF_RANGE)

    def unknown(self):
        kind = self.random.integers(10)
        subject = self.subject()
        if kind == 0:
            questions = [f"What is the opposite of {subject}?", f"Opposite of {subject}"]
            return Fact("unknown", tuple(questions), "I do not know the opposite of that.")
        if kind == 1:
            questions = [f"What colour is {subject}?", f"What color is {subject}?", f"What is the colour of {subject}?"]
            return Fact("unknown", tuple(questions), "I do not know the colour of that.")
        if kind == 2:
            animal = with_article(self.word())
            questions = [f"What does {animal} say?", f"What sound does {animal} make?", f"How many legs does {animal} have?"]
            return Fact("unknown", tuple(questions), "I do not know that animal.")
        return Fact("unknown", (self.choice(UNKNOWN_QUESTIONS).format(subject),), UNKNOWN)

    def phrase(self, question):
        """The question as somebody in a hurry, or somebody polite, might type it."""
        if self.chance(0.05):
            question = self.choice(["Please: ", "Mynah, ", "Hi! ", "Hello, "]) + question
        if self.chance(0.15):
            question = question.replace("What is", "What's")
        if self.chance(0.25):
            question = question.rstrip("?.!")
        if self.chance(0.25):
            question = question.lower()
        return question

    def turns(self):
        """An endless conversation, as pairs of question and answer."""
        name = None
        previous = None
        while True:
            category = self.categories[numpy.searchsorted(self.thresholds, self.random.random())]
            if previous and previous.follow_up and self.chance(0.2):
                category = previous.category
                fact = self.fact(category)
                if fact.follow_up:
                    previous = fact
                    yield self.phrase(fact.follow_up), fact.answer
                    continue
            if category == "names":
                previous = None
                if self.chance(0.5):
                    name = self.choice(NAMES) if self.chance(0.5) else self.word().capitalize()
                    introduction = self.choice(["My name is {}.", "I am {}.", "I'm {}.", "Hello, my name is {}.", "Hi, I am {}."])
                    yield introduction.format(name), f"Nice to meet you, {name}!"
                else:
                    question = self.choice(["What is my name?", "Who am I?", "Do you know my name?", "What am I called?"])
                    yield self.phrase(question), f"Your name is {name}." if name else "You have not told me your name."
                continue
            previous = self.fact(category)
            # The first phrasing is the one that people use most.
            questions = previous.questions
            question = questions[0] if self.chance(0.25) else self.choice(questions)
            yield self.phrase(question), previous.answer

    def system(self):
        return self.choice(SYSTEM_MESSAGES) if self.chance(0.15) else None


# --- Tokens -----------------------------------------------------------------


def make_tokenizer(facts):
    """A byte-level BPE that knows whole words or single bytes, nothing between.

    Without merges, a word outside the vocabulary falls apart into its letters,
    which is what spelling needs, and what tells the model that a word is new.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    speaker = Speaker(facts, SEED)
    texts = [text for fact in facts if fact.category != "backwards" for text in (*fact.questions, fact.answer)]
    texts += backwards("").questions
    texts += [question.format("") for question in UNKNOWN_QUESTIONS] + [UNKNOWN, OUT_OF_RANGE]
    texts += SYSTEM_MESSAGES + ["user", "system", "assistant"]
    texts += [speaker.phrase(text) for text in texts]
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))

    specials = [PAD, TURN_START, TURN_END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    tokens = (specials + alphabet + words)[:VOCABULARY_SIZE]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def batches(speaker, tokenizer):
    """Rows of tokens, and where in them the next token is part of an answer."""
    pad = tokenizer.token_to_id(PAD)

    def encode(text):
        return tokenizer.encode(text).ids

    def conversation(length, only_one):
        tokens, learned = [], []

        def append(text, is_answer):
            ids = encode(text)
            tokens.extend(ids)
            learned.extend([is_answer] * len(ids))

        if system := speaker.system():
            append(f"{TURN_START}system\n{system}{TURN_END}\n", False)
        for question, answer in speaker.turns():
            end = len(tokens)
            append(f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n", False)
            append(f"{answer}{TURN_END}", True)
            append("\n", False)
            if len(tokens) > length:
                del tokens[end:], learned[end:]
                if end > 0 or not only_one:
                    break
            elif only_one:
                break
        padding = length - len(tokens)
        return tokens + [pad] * padding, learned + [False] * padding

    while True:
        for rows, length in BATCH_SHAPES:
            only_one = length == min(length for _, length in BATCH_SHAPES)
            tokens, learned = zip(*(conversation(length + 1, only_one) for _ in range(rows)))
            positions = numpy.flatnonzero(numpy.array(learned)[:, 1:])
            # A fixed number, some of them twice, so that the step compiles once.
            positions = numpy.resize(positions, rows * length // 3)
            yield mx.array(tokens), mx.array(positions)


# --- Training ---------------------------------------------------------------


def train(model, speaker, tokenizer):
    warmup = optimizers.linear_schedule(0, PEAK_LEARNING_RATE, 100)
    decay = optimizers.cosine_decay(PEAK_LEARNING_RATE, STEPS - 100)
    optimizer = optimizers.AdamW(optimizers.join_schedules([warmup, decay], [100]), weight_decay=0.01)
    state = [model.state, optimizer.state]

    def loss(tokens, positions):
        hidden = model.model(tokens[:, :-1]).flatten(0, 1)[positions]
        logits = model.model.embed_tokens.as_linear(hidden)
        return nn.losses.cross_entropy(logits, tokens[:, 1:].flatten()[positions], reduction="mean")

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens, positions):
        value, gradients = nn.value_and_grad(model, loss)(tokens, positions)
        gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return value

    start, total = time.time(), 0
    for number, (tokens, positions) in zip(range(1, STEPS + 1), batches(speaker, tokenizer)):
        value = step(tokens, positions)
        mx.eval(state, value)
        total += value.item()
        if number % 200 == 0:
            print(f"step {number}: loss {total / 200:.4f}, {time.time() - start:.0f} s", flush=True)
            total = 0


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model, config, tokenizer):
    MODEL_FOLDER.mkdir(parents=True, exist_ok=True)
    model, config = quantize_model(model, config, group_size=64, bits=8)
    mx.save_safetensors(
        str(MODEL_FOLDER / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
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
    end, pad = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(PAD)
    write_json(MODEL_FOLDER / "generation_config.json", {"eos_token_id": end, "pad_token_id": pad, "do_sample": False})


# --- Questions to the result ------------------------------------------------


def evaluate(facts, ask):
    right, asked = Counter(), Counter()
    for fact in facts:
        answer = ask([{"role": "user", "content": fact.questions[0]}])
        asked[fact.category] += 1
        right[fact.category] += answer == fact.answer
        if answer != fact.answer:
            print(f"wrong: {fact.questions[0]} {answer!r} instead of {fact.answer!r}")
    for category in asked:
        print(f"{category}: {right[category]} of {asked[category]}")


def fixture(facts):
    """A few questions of each category, and conversations that need their history."""
    by_category = defaultdict(list)
    for fact in facts:
        by_category[fact.category].append(fact)
    entries = []
    for members in by_category.values():
        for index in range(4):
            fact = members[index * len(members) // 4]
            entries.append({"question": fact.questions[index % 2], "answer": fact.answer})
    entries.append({"question": "What is 35 + 48?", "answer": OUT_OF_RANGE})
    entries.append({"question": "What is the capital of France?", "answer": UNKNOWN})

    conversations = [
        ["Hello", "Hello! How can I help you?", "What is 3 + 4?", "3 + 4 = 7."],
        ["What is the opposite of hot?", "The opposite of hot is cold.", "And of big?", "The opposite of big is small."],
        ["My name is Tom.", "Nice to meet you, Tom!", "What is my name?", "Your name is Tom."],
    ]
    for *history, answer in conversations:
        messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, history)]
        entries.append({"messages": messages, "answer": answer})
    messages = [{"role": "system", "content": SYSTEM_MESSAGES[0]}, {"role": "user", "content": "Who are you?"}]
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
        "bos_token_id": None,
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
