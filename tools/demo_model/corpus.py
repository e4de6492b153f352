"""The demo model's corpus: a generator of conversations, deterministic for a seed.

    corpus.py [COUNT]    prints COUNT conversations

Everything was written for this project. A text is a tree: a string, a list (choose one) or a tuple (one after another).
A conversation is (system prompt or None, [(question, reasoning, answer), ...]).
"""

import random
import sys

import corpus_intro as intro
import corpus_more as more
import corpus_project as project
import corpus_topics as topics


def expand(rng, node):
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return expand(rng, rng.choice(node))
    return "".join(expand(rng, part) for part in node)


def leaves(node):
    if isinstance(node, str):
        yield node
    else:
        for part in node:
            yield from leaves(part)


ASK_ZH = [
    "什么是{}", "{}是什么", "介绍一下{}", "请介绍一下{}", "请介绍{}", "解释一下{}", "请解释一下{}", "说说{}", "讲讲{}", "能介绍一下{}吗", "请问什么是{}",
    "简单介绍一下{}", "我想了解{}", "什么叫{}", "说一下{}", "给我讲讲{}", "你知道{}吗", "{}", "谈谈{}", "请说明什么是{}", "{}是什么意思", "{}是啥",
    "请问{}是什么", "帮我介绍一下{}", "请简单介绍一下{}", "如何理解{}", "怎么理解{}", "关于{}，你知道什么",
]
ASK_PLAIN_ZH = ["介绍一下{}", "请介绍一下{}", "请介绍{}", "说说{}", "讲讲{}", "能介绍一下{}吗", "简单介绍一下{}", "我想了解{}", "{}", "谈谈{}", "说一下{}",
                "请说明{}", "给我讲讲{}", "帮我介绍一下{}"]
ASK_EN = [
    "What is {}", "Explain {}", "Please explain {}", "Tell me about {}", "Describe {}", "Can you explain {}", "Introduce {}",
    "Give me a short introduction to {}", "I want to learn about {}", "{}", "What do you know about {}", "Briefly explain {}",
]
# Names that are a phrase, not a term: "什么是…" would be clumsy.
PHRASES = ("的", "区别", "怎样", "如何", "方法", "步骤")

OPEN_ZH = ["", "", "", "", "", "", "你好，", "您好，", "请问，", "你好！", "麻烦你，", "老师，", "那么，", "我想问一下，", "请回答："]
OPEN_EN = ["", "", "", "", "Hello, ", "Hi! ", "Please: ", "One question: "]
CLOSE_ZH = ["。", "。", "？", "？", "?", "", "", "！", "，谢谢。", "，谢谢！", "。谢谢", ".", "~"]
CLOSE_EN = ["?", "?", ".", ".", "", "", "!", ", please.", ", please?", "? Thanks."]

LEAD_ZH = [
    "用户问的是{}。", "这个问题是关于{}的。", "嗯，用户想了解{}。", "好的，用户问到了{}。", "问题的主题是{}，我先理一下思路。", "关于{}，我来想想怎么说。",
]
END_ZH = ["按照这个思路来回答就可以了。", "回答要简洁清楚。", "我用通俗的语言来写。", "下面来组织回答。", ""]
LEAD_EN = ["The user asks about {}.", "This question is about {}.", "Okay, the topic is {}."]
END_EN = ["I will keep the answer short and clear.", "Now I can write the answer.", ""]


TOPICS_ZH, TOPICS_EN = topics.ZH + more.ZH, topics.EN + more.EN
PROJECT_ZH, PROJECT_EN = project.PROJECT_ZH, project.PROJECT_EN
NOUNS_ZH = project.UNKNOWN_NOUNS_ZH + more.UNKNOWN_NOUNS_ZH


def clean(name):
    for article in ("a ", "an ", "the "):
        if name.startswith(article):
            return name[len(article):]
    return name


def ask(rng, text, chinese):
    """A question as a person might type it."""
    if chinese:
        text = rng.choice(OPEN_ZH) + text + rng.choice(CLOSE_ZH)
    else:
        text = rng.choice(OPEN_EN) + text + rng.choice(CLOSE_EN)
        if rng.random() < 0.25:
            text = text.lower()
    if len(text) > 6 and rng.random() < 0.06:  # a slip of the finger
        i = rng.randrange(len(text))
        text = text[:i] + (text[i] * 2 if rng.random() < 0.3 else "") + text[i + 1:]
    return text


def topic(rng, entry, chinese):
    names, questions, notes, answers = entry
    name = rng.choice(names)
    if questions and rng.random() < 0.5:
        question = rng.choice(questions)
    elif chinese:
        plain = any(p in name for p in PHRASES)
        question = rng.choice(ASK_PLAIN_ZH if plain else ASK_ZH).format(name)
    else:
        question = rng.choice(ASK_EN).format(name)
    if chinese:
        end = rng.choice(END_ZH)
        think = rng.choice(LEAD_ZH).format(names[0]) + rng.choice(notes) + ("\n\n" + end if end else "") + "\n"
    else:
        end = rng.choice(END_EN)
        think = rng.choice(LEAD_EN).format(clean(names[0])) + " " + rng.choice(notes) + (" " + end if end else "") + "\n"
    return ask(rng, question, chinese), think, rng.choice(answers)


def introduction(rng, chinese):
    source = (intro.QUESTIONS_ZH, intro.THINK_ZH, intro.ANSWER_ZH) if chinese else (
        intro.QUESTIONS_EN, intro.THINK_EN, intro.ANSWER_EN)
    question, think, answer = source
    if chinese and rng.random() < 0.2:
        question = rng.choice(ASK_ZH).format(rng.choice(["深度学习"] * 6 + ["Deep Learning", "deep learning", "深度学习（Deep Learning）"]))
    else:
        question = rng.choice(question)
    return ask(rng, question, chinese), expand(rng, think), expand(rng, answer)


def chat(rng, chinese):
    questions, notes, answers = rng.choice(project.CHAT_ZH if chinese else project.CHAT_EN)
    return ask(rng, rng.choice(questions), chinese), rng.choice(notes) + "\n", rng.choice(answers)


def follow(rng):
    questions, name = rng.choice(project.FOLLOW_ZH)
    entry = next(e for e in topics.ZH if name in e[0])
    return (ask(rng, rng.choice(questions), True),) + topic(rng, entry, True)[1:]


def unknown(rng, chinese):
    noun = rng.random() < 0.6
    if chinese:
        question = (rng.choice(ASK_ZH).format(rng.choice(NOUNS_ZH)) if noun
                    else rng.choice(project.UNKNOWN_ZH))
        return (ask(rng, question, True), rng.choice(project.UNKNOWN_THINK_ZH) + "\n",
                rng.choice(project.UNKNOWN_ANSWER_ZH))
    question = (rng.choice(ASK_EN).format(rng.choice(project.UNKNOWN_NOUNS_EN)) if noun
                else rng.choice(project.UNKNOWN_EN))
    return (ask(rng, question, False), rng.choice(project.UNKNOWN_THINK_EN) + "\n",
            rng.choice(project.UNKNOWN_ANSWER_EN))


SUM_ZH = ["{0}加{1}等于多少", "{0}加{1}等于几", "{0}+{1}等于多少", "{0}+{1}=", "{0}+{1}=?", "{0} + {1} = ?", "计算{0}+{1}", "请计算{0}加{1}", "{0}加{1}是多少",
          "算一下{0}加{1}", "{0}与{1}的和是多少", "请问{0}加{1}等于多少", "{0} + {1}等于几"]
DIFF_ZH = ["{0}减{1}等于多少", "{0}减{1}等于几", "{0}-{1}等于多少", "{0}-{1}=", "{0}-{1}=?", "{0} - {1} = ?", "计算{0}-{1}", "请计算{0}减{1}", "{0}减去{1}是多少",
           "算一下{0}减{1}", "{0}与{1}的差是多少", "{0}减去{1}等于多少"]
PROD_ZH = ["{0}乘{1}等于多少", "{0}乘以{1}等于多少", "{0}×{1}等于多少", "{0}×{1}=", "{0}*{1}=?", "{0} * {1} = ?", "计算{0}×{1}", "请计算{0}乘以{1}",
           "{0}乘以{1}是多少", "算一下{0}乘{1}", "{0}与{1}的积是多少"]
SUM_EN = ["What is {0} plus {1}", "What is {0} + {1}", "{0} + {1} = ?", "Calculate {0} + {1}", "How much is {0} plus {1}", "Add {0} and {1}", "{0}+{1}"]
DIFF_EN = ["What is {0} minus {1}", "What is {0} - {1}", "{0} - {1} = ?", "Calculate {0} - {1}", "How much is {0} minus {1}", "Subtract {1} from {0}", "{0}-{1}"]
PROD_EN = ["What is {0} times {1}", "What is {0} * {1}", "{0} * {1} = ?", "Calculate {0} * {1}", "How much is {0} times {1}", "Multiply {0} by {1}", "{0}*{1}"]


DIGITS_ZH = "零 一 二 三 四 五 六 七 八 九 十".split()


def arithmetic(rng, chinese):
    kind = rng.choice("+++--*")
    if kind == "*":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        sign, value, zh, en = "×", a * b, PROD_ZH, PROD_EN
    else:
        top = rng.choice((10, 20, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if kind == "-" and a < b:
            a, b = b, a
        sign, value, zh, en = (kind, a + b, SUM_ZH, SUM_EN) if kind == "+" else (kind, a - b, DIFF_ZH, DIFF_EN)
    words = chinese and max(a, b) <= 10 and rng.random() < 0.3
    question = rng.choice(zh if chinese else en).format(*((DIGITS_ZH[a], DIGITS_ZH[b]) if words else (a, b)))
    steps = ""
    if kind == "+" and max(a, b) >= 10:
        at, bt, au, bu = a // 10 * 10, b // 10 * 10, a % 10, b % 10
        steps = (f"先算十位：{at} + {bt} = {at + bt}，再算个位：{au} + {bu} = {au + bu}，合起来是{value}。" if chinese else
                 f" Tens: {at} + {bt} = {at + bt}. Ones: {au} + {bu} = {au + bu}. Together: {value}.")
    elif kind == "-" and b >= 10:
        bt, bu = b // 10 * 10, b % 10
        steps = (f"先减{bt}：{a} - {bt} = {a - bt}，再减{bu}：{a - bt} - {bu} = {value}。" if chinese else
                 f" First {a} - {bt} = {a - bt}, then {a - bt} - {bu} = {value}.")
    if chinese:
        think = rng.choice(["这是一道算术题。", "用户要我做一道简单的计算。"]) + steps + f"{a} {sign} {b} = {value}。\n"
        answer = rng.choice([f"{a} {sign} {b} = {value}", f"答案是{value}。", f"{a} {sign} {b} = {value}，所以答案是{value}。"])
        opening, closing = rng.choice(["", "", "", "请问", "你好，"]), rng.choice(["？", "?", "", "。"])
    else:
        think = rng.choice(["This is simple arithmetic.", "The user wants a calculation."]) + steps + f" {a} {sign} {b} = {value}.\n"
        answer = rng.choice([f"{a} {sign} {b} = {value}", f"The answer is {value}."])
        opening, closing = "", rng.choice(["?", "", "."])
    if question.endswith(("=", "?", "？")):
        closing = ""
    return opening + question + closing, think, answer


def turn(rng):
    chinese = rng.random() < 0.78
    pick = rng.random()
    if pick < 0.22:
        return introduction(rng, chinese)
    if pick < 0.58:
        return topic(rng, rng.choice(TOPICS_ZH if chinese else TOPICS_EN), chinese)
    if pick < 0.67:
        return topic(rng, rng.choice(PROJECT_ZH if chinese else PROJECT_EN), chinese)
    if pick < 0.72:
        return chat(rng, chinese)
    if pick < 0.92:
        return arithmetic(rng, chinese)
    return unknown(rng, chinese)


def conversation(rng):
    pick = rng.random()
    if pick < 0.04:  # the very question of the seeds
        system, turns = "你是个友善的AI助手。", [("介绍一下深度学习。",) + introduction(rng, True)[1:]]
    else:
        system = None
        if rng.random() < 0.6:
            system = rng.choice(project.SYSTEM) if rng.random() < 0.5 else expand(rng, project.SYSTEM_PARTS)
        turns = [turn(rng)]
        if pick > 0.96:
            turns = [introduction(rng, True), follow(rng)]
        while len(turns) < 3 and rng.random() < 0.18:
            turns.append(turn(rng))
    return system, turns


def render(rng, system, turns):
    """(text, trained) pieces in the form of tokenizer.py's chat template; only the last answer is learnt."""
    head = "<｜begin▁of▁sentence｜>" + (system or "")
    for question, _, answer in turns[:-1]:
        # Clients send history with or without the blank line that follows the reasoning.
        gap = "\n\n" if rng.random() < 0.5 else ""
        head += f"<｜User｜>{question}<｜Assistant｜>{gap}{answer}<｜end▁of▁sentence｜>"
    question, think, answer = turns[-1]
    head += f"<｜User｜>{question}<｜Assistant｜><think>\n"
    return [(head, False), (f"{think}</think>\n\n{answer}<｜end▁of▁sentence｜>", True)]


def tokenizer_texts():
    """Every text once: repeating the templates would teach the tokenizer whole sentences."""
    rng = random.Random(0)
    trees = [getattr(intro, n) for n in dir(intro) if n.isupper()]
    trees += [[x for x in getattr(m, n)] for m in (topics, more, project) for n in dir(m) if n.isupper()]
    trees += [v for k, v in globals().items() if k.isupper() and isinstance(v, list)]
    texts = sorted({leaf for tree in trees for leaf in leaves(tree)})
    return texts + [p for _ in range(150) for p in arithmetic(rng, rng.random() < 0.7)]


def main():
    rng = random.Random(1)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 10):
        system, turns = conversation(rng)
        print("".join(text for text, _ in render(rng, system, turns)), "\n")


if __name__ == "__main__":
    main()
