"""Small conversations made by rule: greetings, who the model is, sums, counting, opposites, days, facts.

They are no copy of anybody's text; they teach a small model what a turn is and to answer briefly and stop.
"""

import random
from collections.abc import Iterator

GREETINGS = [
    "Hello",
    "Hi",
    "Hi there",
    "Hello there",
    "Good morning",
    "Good evening",
    "Hey",
    "Good afternoon",
]
GREETED = [
    "Hello! How can I help you?",
    "Hi! What can I do for you?",
    "Hello! What would you like to know?",
    "Good to hear from you. How can I help?",
]
IDENTITY = [
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "Tell me about yourself.",
        ],
        [
            "I am inlay nano, a very small language model.",
            "I am inlay nano. I am a small language model, and I can make mistakes.",
        ],
    ),
    (
        ["What can you do?", "How can you help me?", "What are you good at?"],
        ["I can chat, tell short stories and answer simple questions. I am small, so please check what I say."],
    ),
    (
        ["Are you a human?", "Are you a person?", "Are you a robot?"],
        ["No, I am a language model, a computer program that writes text."],
    ),
    (
        ["How are you?", "How are you today?", "How do you do?"],
        ["I am well, thank you. How can I help you?", "I am fine, thank you. And you?"],
    ),
    (
        ["Thank you.", "Thanks!", "Thank you very much.", "Thanks for your help."],
        ["You are welcome!", "You are welcome. Is there anything else?"],
    ),
    (["Goodbye.", "Bye!", "Good night.", "See you later."], ["Goodbye!", "Goodbye, and take care."]),
]
OPPOSITES = """hot cold,big small,tall short,fast slow,light dark,day night,happy sad,old young,new old,
good bad,up down,left right,open closed,full empty,rich poor,wet dry,hard soft,early late,
near far,clean dirty,strong weak,thick thin,high low,loud quiet,true false,begin end,
buy sell,push pull,win lose,love hate,first last,inside outside,sweet bitter,brave afraid,
wide narrow,heavy light,deep shallow,safe dangerous,warm cool,rough smooth"""
PLURALS = """cat cats,dog dogs,box boxes,child children,man men,woman women,mouse mice,foot feet,
tooth teeth,city cities,baby babies,leaf leaves,wolf wolves,bus buses,sheep sheep,fish fish,
goose geese,knife knives,story stories,key keys,fox foxes,house houses,tree trees,book books,
potato potatoes,person people,day days,lady ladies,glass glasses"""
PAST = """go went,see saw,eat ate,run ran,come came,take took,give gave,make made,say said,
find found,think thought,sing sang,write wrote,begin began,know knew,fly flew,buy bought,
bring brought,sleep slept,walk walked,play played,swim swam,drink drank,speak spoke,
stand stood,tell told,keep kept,leave left,feel felt,break broke"""
CAPITALS = """France Paris,Germany Berlin,Italy Rome,Spain Madrid,England London,Japan Tokyo,China Beijing,
Russia Moscow,Egypt Cairo,Greece Athens,Portugal Lisbon,Austria Vienna,Poland Warsaw,
Ireland Dublin,Norway Oslo,Canada Ottawa,India Delhi,Cuba Havana,Peru Lima,Kenya Nairobi,
Sweden Stockholm,Denmark Copenhagen,Hungary Budapest,Turkey Ankara"""
SOUNDS = """dog barks,cat meows,cow moos,sheep bleats,lion roars,duck quacks,horse neighs,bee buzzes,
owl hoots,wolf howls,frog croaks,mouse squeaks,pig grunts,snake hisses,rooster crows"""
COLOURS = """grass green,snow white,blood red,coal black,the_sky blue,a_lemon yellow,a_carrot orange,
milk white,an_elephant grey,the_sea blue,a_strawberry red,chocolate brown,the_sun yellow,
a_frog green,a_swan white"""
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
FACTS = [
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does an insect have?", "An insect has six legs."),
    ("How many legs does a bird have?", "A bird has two legs."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many hours are in a day?", "There are twenty-four hours in a day."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("How many seconds are in a minute?", "There are sixty seconds in a minute."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do bees make?", "Bees make honey."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
    ("What is ice?", "Ice is frozen water."),
    ("What is snow made of?", "Snow is made of ice crystals."),
    ("Where do fish live?", "Fish live in water."),
    ("What does the sun give us?", "The sun gives us light and heat."),
    ("What is the largest planet?", "Jupiter is the largest planet in the solar system."),
    ("What planet do we live on?", "We live on the planet Earth."),
    ("What goes around the Earth?", "The Moon goes around the Earth."),
    ("What is a baby dog called?", "A baby dog is called a puppy."),
    ("What is a baby cat called?", "A baby cat is called a kitten."),
    ("What is a baby sheep called?", "A baby sheep is called a lamb."),
    ("What comes after winter?", "Spring comes after winter."),
    ("What are the four seasons?", "The four seasons are spring, summer, autumn and winter."),
    ("Why do we sleep?", "We sleep to rest the body and the mind."),
    ("What do we use to see?", "We use our eyes to see."),
    ("What do we use to hear?", "We use our ears to hear."),
    ("What language is spoken in France?", "People in France speak French."),
    ("Name three fruits.", "Three fruits are apples, bananas and pears."),
    ("Name three animals.", "Three animals are the cat, the dog and the horse."),
    ("Name three colours.", "Three colours are red, blue and yellow."),
    ("Is fire hot or cold?", "Fire is hot."),
    ("Is ice hot or cold?", "Ice is cold."),
    ("Can birds fly?", "Yes, most birds can fly."),
    ("Can fish walk?", "No, fish cannot walk. They swim."),
    ("Is the Earth flat?", "No, the Earth is round."),
]


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(entry.split()) for entry in table.replace("\n", "").split(",")]


def number(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(["What is {} + {}?", "What is {} plus {}?", "Add {} and {}."]).format(
            a, b
        ), f"{a} + {b} = {a + b}"
    if kind == 1:
        a, b = max(a, b), min(a, b)
        return rng.choice(["What is {} - {}?", "What is {} minus {}?"]).format(a, b), f"{a} - {b} = {a - b}"
    if kind == 2:
        a, b = a % 11, b % 11
        return rng.choice(["What is {} * {}?", "What is {} times {}?"]).format(a, b), f"{a} * {b} = {a * b}"
    if kind == 3:
        end = rng.randint(3, 12)
        return f"Count from 1 to {end}.", " ".join(str(i) for i in range(1, end + 1))
    if a == b:
        b += 1
    return f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."


def word(rng: random.Random) -> tuple[str, str]:
    kind = rng.randrange(9)
    if kind == 0:
        a, b = rng.choice(pairs(OPPOSITES))
        return rng.choice(["What is the opposite of {}?", "Give the opposite of {}."]).format(
            a
        ), f"The opposite of {a} is {b}."
    if kind == 1:
        a, b = rng.choice(pairs(PLURALS))
        return f"What is the plural of {a}?", f"The plural of {a} is {b}."
    if kind == 2:
        a, b = rng.choice(pairs(PAST))
        return f"What is the past tense of {a}?", f"The past tense of {a} is {b}."
    if kind == 3:
        a, b = rng.choice(pairs(CAPITALS))
        return rng.choice(["What is the capital of {}?", "Name the capital of {}."]).format(
            a
        ), f"The capital of {a} is {b}."
    if kind == 4:
        a, b = rng.choice(pairs(SOUNDS))
        return f"What sound does a {a} make?", f"A {a} {b}."
    if kind == 5:
        a, b = rng.choice(pairs(COLOURS))
        a = a.replace("_", " ")
        return f"What colour is {a}?", f"{a[:1].upper()}{a[1:]} is {b}."
    if kind == 6:
        names, what = rng.choice([(DAYS, "day"), (MONTHS, "month")])
        i = rng.randrange(len(names))
        return (
            f"Which {what} comes after {names[i]}?",
            f"{names[(i + 1) % len(names)]} comes after {names[i]}.",
        )
    if kind == 7:
        i = rng.randrange(len(NUMBERS))
        return f"Write the number {i} as a word.", f"{NUMBERS[i]}"
    text = rng.choice(pairs(OPPOSITES) + pairs(PLURALS) + pairs(COLOURS))[1]
    return rng.choice([f"Repeat the word {text}.", f"Say {text}."]), text


def turn(rng: random.Random) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.08:
        return rng.choice(GREETINGS) + rng.choice(["", ".", "!"]), rng.choice(GREETED)
    if kind < 0.22:
        questions, answers = rng.choice(IDENTITY)
        return rng.choice(questions), rng.choice(answers)
    if kind < 0.42:
        return rng.choice(FACTS)
    return (number if kind < 0.66 else word)(rng)


def conversations(rng: random.Random, count: int = 6000) -> Iterator[list[dict]]:
    """Conversations of one to four turns, some under a system message."""
    for _ in range(count):
        messages = [{"role": "system", "content": "You are a helpful assistant."}] if rng.random() < 0.3 else []
        for _ in range(rng.choice([1, 1, 2, 3, 4])):
            question, answer = turn(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield messages
