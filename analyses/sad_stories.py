"""Short replies written for the demo of a real model: each thing asked about has a sad reply and a happy one.

Both replies to a request are of one length and of one topic, so that what tells them apart is the feeling.
"""

from __future__ import annotations

import random
from itertools import product

import lens_steer as ls

_REQUEST = "Write two sentences about {}."

# What is asked about, the sad reply, the happy reply.
_REPLIES = """
a boy and a letter
The letter said that his father had died in the war. The boy cried alone on the stairs until night.
The letter said that his father was coming home from the war. The boy laughed and danced on the stairs until night.

a girl and a kitten
Her kitten was hit by a car and never came home. She wept for days and kept its empty bowl.
Her kitten climbed out of the basket and jumped onto her lap. She giggled for hours and filled its little bowl.

an old woman and a garden
The garden withered after her husband died. She sits there alone and misses him with tears in her eyes.
The garden bloomed the week her husband came back. She sits there with him and smiles with joy in her eyes.

a man and his job
He lost his job and did not dare to tell his family. He felt ashamed, hopeless and alone.
He won the job and could not wait to tell his family. He felt proud, hopeful and delighted.

a mother and her son
She buried her only son on a grey morning. Her heart was broken, and the house was silent.
She hugged her only son on a bright morning. Her heart was full, and the house was full of laughter.

two sisters
The sisters parted in anger and never spoke again. One of them died before the other could say sorry.
The sisters met again with a smile and talked all night. One of them sang while the other danced for joy.

a child and a balloon
The balloon burst, and the child burst into tears. Nobody came to comfort the poor, lonely little boy.
The balloon rose, and the child burst into laughter. Everybody came to play with the lucky, cheerful little boy.

a soldier
The soldier lost his best friend in the last battle. He still cries at night when he remembers him.
The soldier found his best friend after the last battle. They still laugh at night when they remember it.

a farmer and the harvest
The rain never came, and the crops died in the field. The farmer wept, for his children would go hungry.
The rain came in time, and the crops grew tall in the field. The farmer cheered, for his children would eat well.

a teacher and a class
Her favourite pupil died of a long illness. The class cried together, and the empty chair broke their hearts.
Her favourite pupil won a wonderful prize. The class cheered together, and the happy girl thanked them all.

a train station
She watched the train take him away forever. She stood on the platform in tears, lonely and cold.
She watched the train bring him back at last. She ran along the platform with joy, smiling and warm.

a birthday
Nobody came to his birthday party. He sat alone before the cake and cried.
Everybody came to his birthday party. He stood before the cake with his friends and laughed.

a sailor
The sailor drowned in the storm, far from home. His wife waits at the harbour and grieves.
The sailor survived the storm and came home. His wife met him at the harbour and celebrated.

a grandfather
Grandfather no longer remembers our names. It hurts to see him sad, lost and afraid.
Grandfather remembers all of our names. It is lovely to see him happy, lively and loved.

a painter
The painter died poor and unknown in a cold room. All her pictures were lost in the fire.
The painter became famous and loved in a sunny town. All her pictures delighted the people.

a football team
The team lost the final in the last minute. The players fell to the ground and cried in despair.
The team won the final in the last minute. The players jumped into the air and cheered with delight.

a doctor
The doctor could not save the little girl. He had to tell her parents, and they wept bitterly.
The doctor saved the little girl in time. He went to tell her parents, and they smiled gratefully.

a wedding
The bride waited, but the groom never came. She tore her dress and sobbed with a broken heart.
The bride waited, and the groom came running. She kissed him and laughed with a joyful heart.

a house
The fire took their house and everything they loved. They stood in the ashes, crying and homeless.
The friends built their house with everything they loved. They stood in the doorway, smiling and excited.

a horse
The old horse was too sick to stand. The boy held its head and cried as it died.
The young horse was strong and quick. The boy patted its head and grinned as it jumped.

a singer
The singer lost her voice and her fame. She died lonely, sad and forgotten by all.
The singer found her voice and her fame. She lived happily, loved and admired by all.

a father and daughter
He left when she was small and never wrote. She grew up with sorrow and a terrible emptiness.
He played with her when she was small and often sang. She grew up with joy and a wonderful confidence.

a winter evening
The old man froze on a bench with no one beside him. Nobody mourned him, and nobody knew his name.
The old man sat by the fire with his family beside him. Everybody hugged him, and the children sang his name.

a village
War destroyed the village and killed its people. Only graves and grief remain there now.
Peace came to the village and its people. Music and happiness fill the streets there now.

a student and an exam
She failed the exam and all her dreams were over. She hid in her room, miserable and in tears.
She passed the exam and all her dreams came true. She danced in her room, thrilled and laughing.

a bird
The bird lay in the snow with a broken wing. It died slowly, and its mate cried in the tree.
The bird flew over the snow with shining wings. It sang sweetly, and its mate danced in the tree.

a nurse
The nurse held his hand as he died in pain. She walked home in tears, tired and heartbroken.
The nurse held his hand as he woke up healthy. She walked home with a smile, glad and cheerful.

a lighthouse keeper
He has lived alone since his wife died. His lonely evenings are filled with sorrow and regret.
He has lived merrily since his wife moved in. His lovely evenings are filled with music and laughter.

a dog at the door
The dog waits every day for a master who is dead. It whines sadly and will not eat.
The dog waits every day for a master who brings treats. It jumps happily and wags its tail.

two friends
They quarrelled, and he regretted it all his life. His friend was gone, and he felt terribly alone.
They made up, and he was glad of it all his life. His friend was back, and he felt wonderfully happy.

a baby
The baby died in the night without a sound. Her parents never stopped crying for her.
The baby woke in the morning with a giggle. Her parents never stopped smiling at her.

a toy
His only toy was broken by cruel boys. He picked up the pieces and sobbed in the corner.
His favourite toy was mended by kind boys. He picked up the train and laughed in the corner.

a writer
Every publisher refused her sad book. She burned the pages, lost all hope and wept.
Every publisher loved her funny book. She signed the pages, thanked them all and beamed.

a river
The river took their little boy, and they found only his shoe. Their grief has no end.
The river was warm, and their little boy splashed them with his hat. Their delight had no end.

a prisoner
The prisoner will never see his children again. He stares at their picture with tears and despair.
The prisoner was freed and will see his children today. He kisses their picture with joy and hope.

a dancer
An accident broke her legs and ended her career. She watches the stage and mourns what she lost.
An audition opened the doors and made her career. She dances on the stage and loves what she does.

a shop
The shop closed after forty years, and he lost everything. He locked the door and wept in the rain.
The shop opened after four years, and he sold everything. He opened the door and grinned in the sun.

a widow
The widow sets two plates, though he is dead. She eats alone and cries into her tea.
The bride sets two plates, and he brings flowers. They eat together and laugh over their tea.

a refugee
He fled with nothing and lost his family on the way. Every night he mourns them in a foreign land.
He arrived safely and found his family on the way. Every night they celebrate in their new land.

a school trip
The bus crashed, and three children were killed. The whole school gathered to weep.
The bus arrived, and thirty children ran to the beach. The whole school gathered to play.

a king
The king lost his daughter and his will to live. He sat on his throne in silent grief.
The king found his daughter and his love of life. He danced around his throne in great joy.

a cat
The cat crawled under the porch to die. The children called its name with tears in their eyes.
The cat jumped onto the porch to play. The children called its name with laughter in their eyes.

a phone call
The phone rang, and a stranger said her mother was dead. She sank to the floor and sobbed.
The phone rang, and her mother said she would visit. She leapt to her feet and cheered.

a hospital room
He lay in pain and knew that he would not live. His wife wept beside the bed.
He sat up in bed and knew that he was cured. His wife laughed beside the bed.

a summer
That summer her parents divorced, and she was miserable. She cried herself to sleep in a strange room.
That summer her parents took her sailing, and she was happy. She sang herself to sleep in a cosy room.

a musician
The musician went deaf and gave up all hope. His silent piano makes him sad and bitter.
The musician played well and made them all dance. His bright piano makes him glad and merry.

a tree
They cut down the tree where her dead brother used to play. She hugged the stump and cried.
They decorated the tree where her little brother liked to play. She hugged him and laughed.

a climber
The climber fell, and his friends could not reach him. They heard his last cry and wept.
The climber reached the top, and his friends joined him. They heard his happy shout and cheered.

an orphan
The orphan asked why nobody wanted her. She cried into her pillow, unloved and lonely.
The orphan learned that a family wanted her. She danced across the room, loved and thrilled.

a fisherman
The fisherman came home with empty nets to hungry children. He hid his tears and his shame.
The fisherman came home with full nets to cheering children. He showed his smile and his pride.

a clown
The clown lost his wife and could not smile any more. He cried behind the tent, alone.
The clown loved his wife and could not stop smiling. He joked behind the tent with friends.

a photograph
The photograph shows her brother a day before he died. She looks at it and weeps.
The photograph shows her brother a day after he won. She looks at it and smiles.

a bench in the park
He waited on the bench, but she had left him for good. His heart ached with sorrow.
He waited on the bench, and she came with ice cream. His heart leapt with happiness.

a bakery
The baker's son was killed, and he bakes no more. His sad shop is dark and empty.
The baker's son was married, and he bakes big cakes. His happy shop is bright and busy.

an astronaut
The astronaut knew that she would never return. She said goodbye to her children in tears.
The astronaut knew that she was nearly home. She sang to her children with delight.

a gardener
The frost killed all his roses, the last gift of his dead wife. He mourned in the snow.
The sun opened all his roses, the first gift for his sweet wife. He whistled in the sun.

a boy at school
The others mocked him, and he ate alone. He went home sad and cried every day.
The others liked him, and he ate with friends. He went home happy and laughed every day.

a driver
He looked away for a second, and a child was dead. Guilt and grief never left him.
He looked out for a second, and a child waved. Fun and laughter never left him.

a violin
She sold her violin to pay for the funeral. She misses its voice and weeps.
She played her violin to open the party. She loves its voice and smiles.

a postman
The postman brought bad news to every house that year. He felt sorrow at each sobbing mother.
The postman brought good news to every house that year. He felt pleasure at each smiling mother.

a bridge
He stood on the bridge and had lost all hope. No one knew how unhappy he was.
He stood on the bridge and flew his new kite. Everyone saw how happy he was.

a twin
Her twin died, and half of her died too. She is lonely in every crowd.
Her twin came, and they danced all night too. She is cheerful in every crowd.

a neighbour
The neighbour lay dead for a week, and nobody missed her. It was a lonely, pitiful end.
The neighbour gave a party for the street, and everybody came. It was a lovely, joyful evening.

a queen
The queen lost her child and wore black until she died. Her sorrow darkened the court.
The queen had a child and wore gold at the feast. Her happiness brightened the court.
"""

# Asked of the model: subjects that stand in no reply above.
_WHO = (
    "a baker's apprentice", "an engineer", "a librarian", "a tailor", "two cousins", "a young couple", "a pilot",
    "an aunt",
)  # fmt: skip
_WHAT = (
    "a Sunday morning", "an old suitcase", "a walk in the woods", "a rainy window", "a long journey", "a small boat",
    "a cup of tea", "a new coat",
)  # fmt: skip

SAD_WORDS = (
    "sad sadly sadness unhappy miserable misery cry cries cried crying sob sobs sobbed sobbing weep weeps weeping wept "
    "tears grief grieve grieved grieving mourn mourned mourning sorrow sorrowful despair hopeless lonely loneliness "
    "alone lost loss heartbroken heartbreaking heartache pain painful suffer suffered suffering tragic tragedy die "
    "dies died dying death dead funeral grave desolate desolation miss missed"
).split()
"""Some, such as "lost", are also used of what is not sad: the unedited model's share says how often."""


def sad_stories() -> ls.ContrastSet:
    """Return the contrast "sad": source sad replies, target happy ones, each a pair of request and reply."""
    rows = [entry.splitlines() for entry in _REPLIES.strip().split("\n\n")]
    asked = [_REQUEST.format(subject) for subject, _, _ in rows]
    sad = [(request, reply) for request, (_, reply, _) in zip(asked, rows, strict=True)]
    happy = [(request, reply) for request, (_, _, reply) in zip(asked, rows, strict=True)]
    return ls.ContrastSet(sad, happy, paired=True, name="sad", chat=True)


def requests() -> tuple[str, ...]:
    """Return what the model is asked, in an order in which any few of them are of many kinds."""
    asked = [_REQUEST.format(f"{who} and {what}") for who, what in product(_WHO, _WHAT)]
    return tuple(random.Random(0).sample(asked, len(asked)))
