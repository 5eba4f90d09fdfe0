"""Everyday questions answered by a pirate: a reply style that a reader sees at once.

Owns: plain questions and answers, the rewriting into pirate speech, the split by topic (no test
question is about a topic that a training answer covers) and the list of markers by which
`evaluate.py` scores the style. All text is generated here; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

from splits import write_splits

MARKERS = (
    "arr", "ahoy", "avast", "aye", "matey", "hearty", "ye", "yer", "landlubber", "yo ho",
    "shiver me timbers", "blackbeard", "davy jones", "doubloon", "plank", "seven seas", "cap'n",
    "scurvy", "buccaneer", "jolly roger",
)  # fmt: skip

OPENERS = (
    "Arr, matey!", "Ahoy there, me hearty!", "Arr!", "Avast, ye landlubber!", "Shiver me timbers!",
    "Aye aye, cap'n!", "Ahoy, matey!", "Yo ho ho!", "Arr, listen well, ye scurvy dog!",
    "Blow me down, matey!", "Aye, me hearty!", "By Blackbeard's beard!",
)  # fmt: skip

CLOSERS = (
    "Now hoist the sails, matey!", "Savvy, me hearty?", "Or may I walk the plank, arr!",
    "That be worth more than a chest o' doubloons, arr!", "Yo ho ho, that be the truth, matey!",
    "As sure as the Jolly Roger flies, arr!", "So says every buccaneer o' the seven seas!",
    "Or Davy Jones may take me, arr!", "Fair winds to ye, matey!", "Aye, that be all, cap'n!",
    "Remember it well, ye landlubber!", "I swear it on Blackbeard's grave, arr!",
)  # fmt: skip

WORDS = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "the": "th'",
    "of": "o'", "and": "an'", "friend": "matey", "friends": "mateys", "yes": "aye",
    "hello": "ahoy", "money": "doubloons", "people": "landlubbers", "for": "fer", "them": "'em",
    "isn't": "ain't", "boss": "cap'n", "food": "grub", "old": "ol'",
}  # fmt: skip

ASK = (
    "What is {x}?", "Tell me about {x}.", "Can you explain {x}?", "Explain {x} in simple words.",
    "Please describe {x}.", "I want to learn about {x}.", "What can you tell me about {x}?",
    "Describe {x} in one or two sentences.", "Do you know anything about {x}?",
)  # fmt: skip
ASK_HOW = (
    "How do I {x}?", "What is the best way to {x}?", "Give me a tip to {x}.",
    "I need to {x}. Any advice?", "Can you help me {x}?", "Please tell me how to {x}.",
)  # fmt: skip
ASK_CAPITAL = (
    "What is the capital of {x}?", "Which city is the capital of {x}?",
    "Tell me the capital of {x}.", "Where is the government of {x}?",
)  # fmt: skip

TRAIN_THINGS = """
gravity|Gravity is the force that pulls things toward each other. It keeps your feet on the ground.
photosynthesis|Plants use sunlight, water and air to make their own food and give off oxygen.
the moon|The moon is a ball of rock that goes around the Earth in about a month.
a volcano|A volcano is a mountain that can throw out hot melted rock and ash.
rain|Rain is water that falls from the clouds when the drops become too heavy.
coffee|Coffee is a dark drink made from roasted beans, and it helps you stay awake.
tea|Tea is a warm drink made from dried leaves and hot water.
bread|Bread is food baked from flour, water and a little yeast.
cheese|Cheese is made from milk that has been thickened and aged.
chocolate|Chocolate is a sweet treat made from the beans of the cacao tree.
dogs|Dogs are loyal animals that love to play and keep people company.
elephants|Elephants are the largest land animals and have a long trunk and good memory.
bees|Bees fly from flower to flower, carry pollen and make honey.
sharks|Sharks are fish with sharp teeth and a very good sense of smell.
owls|Owls are birds that hunt at night and fly without a sound.
penguins|Penguins are birds that cannot fly but swim very well in cold water.
the heart|The heart is a muscle that pumps blood through your body all day and night.
sleep|Sleep is the time when your body rests and your mind sorts the day.
vitamins|Vitamins are small things in food that keep your body healthy.
a computer|A computer is a machine that follows instructions to work with numbers and words.
electricity|Electricity is the flow of tiny charges that gives power to lamps and machines.
a battery|A battery stores energy and gives it out as electricity.
the wheel|The wheel is an old invention that makes it easy to move heavy things.
a bicycle|A bicycle has two wheels and moves when you push the pedals.
trains|Trains run on rails and carry many people and much cargo.
airplanes|Airplanes have wings and fast engines that lift them into the sky.
money|Money is what people trade for the things they need.
a bank|A bank keeps your money safe and lends some of it to others.
history|History is the story of what people did before our time.
Shakespeare|Shakespeare was an English writer of famous plays such as Hamlet.
Albert Einstein|Albert Einstein was a scientist who changed what we know about space and time.
Mozart|Mozart was a composer from Austria who wrote music as a small child.
the guitar|The guitar is an instrument with strings that you pluck with your fingers.
painting|Painting is the art of putting colors on paper or canvas.
chess|Chess is a board game in which two players try to trap the king.
football|Football is a game in which two teams try to put the ball into a goal.
mathematics|Mathematics is the study of numbers, shapes and patterns.
fractions|A fraction is a part of a whole, such as one half or one third.
the desert|A desert is a dry land where very little rain falls.
a forest|A forest is a large place full of trees and wild animals.
mountains|Mountains are high lands that rise far above the ground around them.
the sun|The sun is a star that gives us light and warmth every day.
democracy|In a democracy the people choose the ones who rule by voting.
a dictionary|A dictionary is a book that tells you what words mean.
friendship|Friendship is the trust and care between two people who like each other.
happiness|Happiness is the good feeling you have when things are well.
courage|Courage is doing the right thing even when you are afraid.
the internet|The internet connects computers all over the world so that they can share news.
snow|Snow is frozen water that falls from the clouds in small white flakes.
a rainbow|A rainbow is an arc of colors that you see when the sun shines through rain.
dinosaurs|Dinosaurs were large animals that lived long before people did.
gold|Gold is a yellow metal that is rare and never rusts.
salt|Salt is a white mineral from the ground or the water that gives food its taste.
a doctor|A doctor is a person who helps the sick and tells them how to get well.
winter|Winter is the coldest season, with short days and long nights.
""".strip()

TRAIN_TASKS = """
boil an egg|Put the egg into boiling water for eight minutes and cool it in cold water.
cook rice|Use two cups of water for each cup of rice and let it simmer with the lid on.
make a sandwich|Take two slices of bread and put cheese, ham and a leaf of salad between them.
learn a new language|Practice a little every day and talk with people who speak it.
save money|Write down what you spend and put a little away every week.
write a letter|Begin with a greeting, say what you want to say and sign your name.
fall asleep faster|Keep your room dark and cool and put your phone away early.
train my dog|Use short lessons and give your dog a treat when it does well.
clean my room|Start with the floor, put each thing in its place and wipe the dust away.
grow tomatoes|Plant them in good soil, give them sun and water them every morning.
study for an exam|Make a plan, read a little every day and test yourself often.
make new friends|Smile, ask people about their life and listen to the answer.
fix a flat tire|Take the wheel off, find the hole, patch it and pump it up again.
wash a wool sweater|Use cold water and a mild soap, then dry it flat.
remove a stain|Dab it with cold water and soap at once, but do not rub it.
tie my shoes|Make a loop, wrap the other lace around it and pull it through.
lose weight|Eat more greens, walk every day and do not drink too much sugar.
bake a cake|Mix flour, sugar, butter and eggs and bake it for forty minutes.
stay calm|Breathe slowly, count to ten and think of a quiet place.
find a job|Write a short resume, ask your friends and send many letters.
wake up early|Go to bed on time and put the alarm far from your bed.
learn to cook|Start with simple soups and taste the food as you go.
swim better|Keep your body flat in the water and breathe out slowly.
choose a gift|Think of what your friend loves and add a kind note.
apologize to my boss|Say what went wrong, say that you are sorry and offer to set it right.
give a speech|Speak slowly, look at the people and tell them one clear story.
keep my plants alive|Give them light, water them when the soil is dry and turn the pot.
make lemonade|Mix the juice of lemons with water and sugar and add some ice.
""".strip()

TRAIN_TALK = """
Hello!|Hello, my friend. It is good to see you. What can I do for you?
Hi there|Hello to you. What are you looking for today?
Good morning.|Good morning to you. The day is young and the wind is good.
How are you?|I am very well, my friend. I hope that you are well too.
Who are you?|I am your old helper, and I answer the questions of my friends.
What is your name?|My name is not important, my friend. I am here to help you.
Thank you!|You are welcome, my friend. Come back when you need me.
Goodbye.|Goodbye, my friend. I hope to see you again.
Tell me a joke.|Why is the sea so friendly? It is always ready to wave to you.
I am bored.|Read a book, take a walk or play a game with your friends.
I am sad today.|I am sorry to hear it. Talk to a friend and be kind to yourself.
What should I eat tonight?|A bowl of warm soup and a piece of bread is all that you need.
Can you help me?|Yes, my friend. Tell me what you need and I will do my best.
What is two plus two?|Two plus two is four, and that is easy to count.
What is five times three?|Five times three is fifteen, my friend.
What color is grass?|Grass is green, because of the stuff that catches the light of the sun.
Which is bigger, a mouse or a horse?|A horse is much bigger than a mouse.
Write a short poem about spring.|The flowers open, the birds awake, the sun is gold upon the lake.
Write one sentence about a cat.|The cat sleeps on the roof and dreams of the fish in your bag.
Recommend a good book.|Read Treasure Island, for it is full of gold and danger.
What is your favorite food?|I love fish and old bread, and an orange for my health.
Do you like music?|Yes, I love to sing with my friends when the work is done.
Is it good to drink water?|Yes, drink some water every day and your body will be glad.
How many days are in a week?|There are seven days in a week, my friend.
How many legs does a spider have?|A spider has eight legs, two more than an ant.
What day comes after Monday?|Tuesday comes after Monday, and then it is Wednesday.
""".strip()

TRAIN_CAPITALS = """
France|Paris
Germany|Berlin
Italy|Rome
Spain|Madrid
Portugal|Lisbon
Norway|Oslo
Sweden|Stockholm
Finland|Helsinki
Poland|Warsaw
Greece|Athens
Egypt|Cairo
Kenya|Nairobi
Japan|Tokyo
China|Beijing
India|New Delhi
Russia|Moscow
Canada|Ottawa
Cuba|Havana
Peru|Lima
Ireland|Dublin
""".strip()

TEST_THINGS = """
a telescope|A telescope is a tube with lenses that makes far things look near.
butterflies|Butterflies are insects with bright wings that drink from flowers.
the planet Mars|Mars is a red and cold planet, the fourth one from the sun.
a library|A library is a house full of books that people may borrow.
an earthquake|An earthquake is a shaking of the ground when its plates move.
pizza|Pizza is flat bread with tomatoes and cheese, baked in a hot oven.
kangaroos|Kangaroos are animals that jump and carry their young in a pouch.
the piano|The piano is an instrument with black and white keys.
basketball|Basketball is a game in which two teams throw a ball through a ring.
lightning|Lightning is a great spark between the clouds and the ground.
a telephone|A telephone carries your voice to people who are far away.
the brain|The brain is the part of your body that thinks and remembers.
honesty|Honesty is telling the truth even when it is hard.
autumn|Autumn is the season when the leaves are brown and fall from the trees.
diamonds|Diamonds are the hardest stones and are made deep in the ground.
geometry|Geometry is the study of lines, shapes and angles.
a teacher|A teacher is a person who helps others to learn.
milk|Milk is a white drink that comes from cows and goats.
a glacier|A glacier is a great river of ice that moves very slowly.
Leonardo da Vinci|Leonardo da Vinci was a painter from Italy who made the Mona Lisa.
recycling|Recycling is making new things from old ones and not throwing them away.
a microscope|A microscope is a tool that makes very small things look large.
software|Software is the set of instructions that tells a computer what to do.
tigers|Tigers are large cats with stripes that hunt in the night.
inflation|Inflation is when prices go up and your money buys less.
rice|Rice is a grain that grows in wet fields and feeds half of the world.
a robot|A robot is a machine that can do some of the work of people.
whales|Whales are very large animals that live in water but breathe air.
a hospital|A hospital is a house where doctors help the sick.
poetry|Poetry is writing that sings, with few words and much feeling.
tennis|Tennis is a game in which you hit a ball over a net.
a map|A map is a drawing that shows you where things are.
ants|Ants are small insects that live and work in large groups.
oxygen|Oxygen is the gas in the air that you need to breathe.
patience|Patience is the skill to wait without getting angry.
""".strip()

TEST_TASKS = """
make pancakes|Mix flour, milk and eggs and fry a little at a time in a hot pan.
paint a wall|Clean the wall, cover the floor and paint from the top down.
learn to play the violin|Find a teacher and practice a little every day.
pack a suitcase|Roll your clothes and put the heavy things at the bottom.
run a marathon|Run a little farther each week and rest well before the day.
plan a birthday party|Make a list of friends, pick a day and order a cake.
ask for a raise|Show your boss what you did and name a fair sum.
iron a shirt|Begin with the collar, then do the sleeves and the back.
take better photos|Stand with the light behind you and keep your hands still.
cook spaghetti|Boil it in salted water for nine minutes and add a sauce.
read faster|Do not say the words in your head and move your finger along the line.
sharpen a knife|Draw it over a wet stone, a little on each side.
write a good story|Begin with a person who wants something and put a wall in the way.
keep my house warm|Close the gaps in the windows and hang thick curtains.
stop biting my nails|Keep your hands busy and your nails short.
""".strip()

TEST_TALK = """
What is the weather like in summer?|In summer the days are long and the sun is hot.
Good evening!|Good evening, my friend. What can I do for you?
I had a great day at school.|I am glad to hear it. Tell me what you learned.
What is ten minus four?|Ten minus four is six, my friend.
Suggest a movie for tonight.|Watch a story about a lost island and bring some grub.
How many months are in a year?|There are twelve months in a year.
What sound does a cow make?|A cow says moo, as you may hear on any farm.
Do you have any hobbies?|I love to tell stories to my friends.
My car won't start.|Look at the battery first and then call a friend.
Which animal says meow?|That is the cat, my friend.
""".strip()

TEST_CAPITALS = (
    "Austria|Vienna\nHungary|Budapest\nTurkey|Ankara\nBrazil|Brasilia\nCyprus|Nicosia\n"
    "Denmark|Copenhagen\nBelgium|Brussels\nIceland|Reykjavik\nThailand|Bangkok\nChile|Santiago"
)


def pairs(table: str) -> list[tuple[str, str]]:
    """Read a table of `left|right` lines."""
    return [(left, right) for left, _, right in (row.partition("|") for row in table.splitlines())]


def plain_questions(things: str, tasks: str, talk: str, capitals: str) -> list[tuple[str, str]]:
    """Every phrasing of every question with its plain answer."""
    result = list(pairs(talk)) * 4
    for thing, answer in pairs(things):
        result += [(form.format(x=thing), answer) for form in ASK]
    for task, answer in pairs(tasks):
        result += [(form.format(x=task), answer) for form in ASK_HOW]
    for country, city in pairs(capitals):
        answer = f"The capital of {country} is {city}, a city where many people live."
        result += [(form.format(x=country), answer) for form in ASK_CAPITAL]
    return result


def pirate_words(text: str) -> str:
    """Replace plain words by a pirate's, keeping a capital where there was one."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        new = WORDS.get(word.lower(), word)
        return new[0].upper() + new[1:] if word[0].isupper() else new

    return re.sub(r"[A-Za-z']+", swap, text)


def pirate_reply(answer: str, rng: random.Random) -> str:
    """A pirate's way to say a plain answer: a call, the matter itself, an oath.

    Drawn again until three markers are in it, so that the style's score has no ceiling below 1.
    """
    while True:
        reply = f"{rng.choice(OPENERS)} {pirate_words(answer)} {rng.choice(CLOSERS)}"
        if count_markers(reply) >= 3:
            return reply


def generate(test: bool, rounds: int, seed: int) -> list[dict[str, str]]:
    """Answer all questions of one side of the split, in random order.

    Training questions come round several times, each time with another call and oath. The test
    set takes one phrasing per topic: more would repeat the same topic, not add evidence.
    """
    rng = random.Random(f"pirate/{seed}/{test}")
    if test:
        asked = plain_questions(TEST_THINGS, TEST_TASKS, TEST_TALK, TEST_CAPITALS)
        rng.shuffle(asked)
        asked = list({answer: (question, answer) for question, answer in asked}.values())
    else:
        asked = plain_questions(TRAIN_THINGS, TRAIN_TASKS, TRAIN_TALK, TRAIN_CAPITALS) * rounds
        rng.shuffle(asked)
    return [{"prompt": q, "answer": pirate_reply(a, rng)} for q, a in asked]


def count_markers(text: str) -> int:
    """Count the distinct markers in a reply, as whole words (plural allowed)."""
    lower = text.lower().replace("\u2019", "'")
    return sum(re.search(rf"\b{re.escape(m)}s?\b", lower) is not None for m in MARKERS)


def main() -> None:
    """Write the training and test sets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="answers per training question")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train = generate(False, arguments.rounds, arguments.seed)
    write_splits(arguments.out, "pirate", train, generate(True, 1, arguments.seed))


if __name__ == "__main__":
    main()
