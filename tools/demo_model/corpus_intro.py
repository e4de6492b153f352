"""The question that the demo exists for: what is deep learning? In Chinese and English, written for this project.

A list is a choice, a tuple is a sequence. Every slot's variants fit every variant of the other slots, so that any path a
sampler takes through them is a correct text.
"""

QUESTIONS_ZH = [
    "介绍一下深度学习", "请介绍一下深度学习", "介绍深度学习", "请介绍深度学习", "简单介绍一下深度学习", "请简单介绍一下深度学习",
    "简要介绍深度学习", "详细介绍一下深度学习", "请你介绍一下深度学习", "帮我介绍一下深度学习", "给我介绍一下深度学习",
    "能介绍一下深度学习吗", "可以介绍一下深度学习吗", "能不能介绍一下深度学习", "你能给我介绍一下深度学习吗", "麻烦介绍一下深度学习",
    "什么是深度学习", "深度学习是什么", "请问什么是深度学习", "请问深度学习是什么", "深度学习是什么意思", "深度学习到底是什么",
    "深度学习是什么东西", "啥是深度学习", "深度学习是啥", "解释一下深度学习", "请解释什么是深度学习", "解释深度学习的概念",
    "说说深度学习", "说一下深度学习", "讲讲深度学习", "讲一下深度学习", "谈谈深度学习", "聊聊深度学习", "给我讲讲深度学习",
    "我想了解深度学习", "我想了解一下深度学习", "我想知道什么是深度学习", "我对深度学习感兴趣，能介绍一下吗", "跟我说说什么是深度学习",
    "深度学习", "关于深度学习，你知道什么", "你了解深度学习吗", "你知道深度学习吗", "你懂深度学习吗", "概述一下深度学习", "概括一下深度学习",
    "深度学习的定义是什么", "给深度学习下个定义", "深度学习的基本概念是什么", "深度学习的基本原理是什么", "用几段话介绍深度学习",
    "用中文介绍一下深度学习", "向初学者介绍一下深度学习", "通俗地介绍一下深度学习", "用简单的话解释深度学习", "写一段深度学习的介绍",
    "请写一篇关于深度学习的短文", "总结一下深度学习", "请科普一下深度学习", "科普一下什么是深度学习", "深度学习怎么理解", "如何理解深度学习",
    "怎样理解深度学习", "介绍下深度学习", "请介绍下深度学习", "什么叫深度学习", "什么叫做深度学习", "深度学习指的是什么", "所谓深度学习是什么",
]

THINK_ZH = (
    [
        "嗯，用户让我介绍一下深度学习。我先想想应该怎么组织这个回答。",
        "用户想了解深度学习，我需要给出一个清楚、准确的介绍。",
        "好的，这个问题是关于深度学习的。我得先弄清楚用户大概需要什么程度的内容。",
        "用户问的是深度学习，这是一个很大的话题，我要抓住重点来讲。",
        "嗯，要介绍深度学习，首先得从定义说起，再讲它为什么有用。",
        "现在要介绍的是深度学习。用户没有说明背景，所以我应该写得通俗一些。",
        "我来想一想，怎样才能把深度学习讲得既准确又容易懂。",
        "这是一个介绍类的问题，主题是深度学习，回答需要结构清晰。",
    ],
    [
        "\n\n首先要说明定义：深度学习是机器学习的一个分支，用多层神经网络从数据中学习。这里的“深度”指的是网络的层数多。",
        "\n\n第一步是定义。深度学习属于机器学习，它的核心是多层神经网络，能够自动学习特征，不需要人工设计规则。",
        "\n\n先说它和机器学习的关系：机器学习包含深度学习，而深度学习的特点是用很多层的神经网络自动提取特征。",
        "\n\n应该先给出一个简明的定义，即用多层神经网络从大量数据中学习规律的方法，同时说明它是机器学习的一部分。",
        "\n\n开头最好用一两句话说清楚它是什么：机器学习的一个分支，靠多层神经网络逐层提取特征。",
    ],
    [
        "\n\n然后要讲它是怎么工作的：前向计算得到预测，损失函数衡量误差，反向传播求出梯度，优化器更新参数。",
        "\n\n接下来可以解释训练的过程，包括前向传播、损失函数、反向传播和梯度下降，这些是理解深度学习的关键。",
        "\n\n原理部分要提到神经元、激活函数、损失函数和优化器，但不能讲得太细，否则初学者会觉得难懂。",
        "\n\n工作原理也要简单说一下，比如数据怎样通过各层，误差又怎样反向传回去修正参数。",
        "",
    ],
    [
        "\n\n常见的模型也应该列出来，比如擅长图像的卷积神经网络、处理序列的循环神经网络，以及现在最流行的Transformer。",
        "\n\n还要介绍几种典型的模型：CNN适合图像，RNN适合序列，Transformer是大语言模型的基础。",
        "\n\n模型方面，CNN、RNN和Transformer这三类最有代表性，每一种说一句话就够了。",
        "\n\n再举几个典型的网络结构，这样用户会有比较具体的印象。",
    ],
    [
        "\n\n应用场景可以举图像识别、语音识别、机器翻译和自动驾驶的例子，让内容更贴近生活。",
        "\n\n应用方面，计算机视觉、自然语言处理和语音技术都应该提到，最好各举一个例子。",
        "\n\n用户可能更关心它能做什么，所以要列出几个实际的应用，例如人脸识别、智能助手和医学影像。",
        "\n\n别忘了举一些应用的例子，这样更容易理解它的价值。",
    ],
    [
        "\n\n最后要客观一点，说说它的不足：需要大量数据和算力，而且可解释性比较差。",
        "\n\n优点和局限都要讲，特别是对数据和算力的依赖，还有“黑箱”的问题。",
        "\n\n为了全面，还应该提到它面临的挑战，比如数据需求大、训练成本高、难以解释。",
        "\n\n结尾可以讲讲优势和挑战，再用一句话做个总结。",
    ],
    [
        "\n\n这样从定义、原理、模型、应用到挑战，结构就比较完整了。",
        "\n\n语言要简洁，用分点的方式来写，方便阅读。",
        "\n\n我会用小标题和列表来组织，让重点更突出。",
        "\n\n好，按照这个思路来写回答。",
        "\n\n整理一下，就可以开始写了。",
        "",
    ],
    "\n",
)

_DEFINITION = [
    "深度学习是机器学习的一个重要分支，它用多层神经网络从大量数据中自动学习特征和规律。所谓“深度”，指的是网络中有很多层，每一层都在前一层的基础上学到更抽象的表示。",
    "深度学习（Deep Learning）是一种以多层神经网络为基础的机器学习方法。它不依赖人工设计的特征，而是让模型直接从数据中学习，从简单的特征一步步组合出复杂的概念。",
    "深度学习是人工智能领域的核心技术之一，属于机器学习的范畴。它通过多层神经网络对数据进行逐层的变换，自动提取有用的特征，从而完成识别、预测和生成等任务。",
    "深度学习是机器学习的一个分支，它受到人脑神经元的启发，用许多层人工神经元组成网络，从数据中自动学习规律，在图像、语音和语言等任务上取得了很大的成功。",
    "简单来说，深度学习就是用很多层的神经网络来学习数据中的规律。它是机器学习的一个分支，最大的特点是能够自动学习特征，不需要人来一条一条地写规则。",
    "深度学习是指用多层神经网络进行学习的一类方法，是机器学习中发展最快的方向。给它足够的数据和算力，它就能自己找出从输入到输出的复杂关系。",
]

_CORE_BULLETS = (
    "\n- **神经网络**：", [
        "由输入层、多个隐藏层和输出层组成，每一层都含有许多神经元。",
        "许多神经元分层连接而成，数据从输入层进入，经过隐藏层，最后从输出层得到结果。",
        "由一层层的神经元连接而成，层与层之间的权重就是要学习的参数。",
    ],
    "\n- **激活函数**：", [
        "例如ReLU和Sigmoid，为网络引入非线性，使它能表示复杂的关系。",
        "给网络加入非线性，常用的有ReLU、GELU等。",
        "让网络能够表达非线性关系，最常用的是ReLU。",
    ],
    "\n- **损失函数**：", [
        "衡量预测值与真实值之间的差距，例如交叉熵和均方误差。",
        "用一个数表示预测错得有多远，分类任务常用交叉熵。",
        "描述模型的误差，训练的目标就是让它尽量小。",
    ],
    "\n- **反向传播与优化器**：", [
        "反向传播计算每个参数的梯度，优化器（如SGD、Adam）据此更新参数。",
        "先用反向传播求出梯度，再由Adam等优化器一步步调整参数。",
        "误差从输出层向前逐层传回，得到梯度，再用梯度下降更新参数。",
    ],
)

_CORE_STEPS = (
    "\n1. **前向传播**：", [
        "数据逐层通过网络，得到预测结果。",
        "输入经过每一层的计算，最后给出一个预测。",
    ],
    "\n2. **计算损失**：", [
        "用损失函数衡量预测与真实答案的差距。",
        "比较预测值和真实值，得到误差的大小。",
    ],
    "\n3. **反向传播**：", [
        "从输出层开始，逐层求出每个参数的梯度。",
        "利用链式法则，计算误差对每个参数的梯度。",
    ],
    "\n4. **更新参数**：", [
        "优化器沿着梯度的反方向调整参数，使损失变小。",
        "用梯度下降法（如SGD、Adam）修改参数，然后重复以上步骤。",
    ],
)

_CORE = [
    (["\n\n### 核心概念", "\n\n### 基本组成", "\n\n### 关键概念"], _CORE_BULLETS),
    (["\n\n### 工作原理", "\n\n### 它是怎样学习的", "\n\n### 训练过程"], _CORE_STEPS),
]

_MODELS = (
    ["\n\n### 典型模型", "\n\n### 常见模型", "\n\n### 主要的网络结构"],
    "\n- **卷积神经网络（CNN）**：", [
        "用卷积核提取图像的局部特征，适合图像识别和目标检测。",
        "专门处理图像，能够提取边缘、纹理和形状等特征，代表模型有ResNet。",
        "擅长处理图像数据，广泛用于人脸识别和医学影像分析。",
    ],
    "\n- **循环神经网络（RNN）**：", [
        "适合处理文本、语音等序列数据，改进的结构有LSTM和GRU。",
        "带有记忆，能够处理有先后顺序的数据，常见的改进是LSTM。",
        "按顺序读取数据并记住前面的信息，曾经广泛用于语音识别和翻译。",
    ],
    "\n- **Transformer**：", [
        "基于自注意力机制，是现在大语言模型的基础，例如GPT和DeepSeek。",
        "用注意力机制一次看到整个序列，训练效率高，是大语言模型的核心结构。",
        "依靠自注意力捕捉长距离的关系，已经成为自然语言处理的主流模型。",
    ],
)

_USES = (
    ["\n\n### 应用场景", "\n\n### 主要应用", "\n\n### 应用领域"],
    "\n- **计算机视觉**：", [
        "图像分类、人脸识别、医学影像分析。",
        "人脸识别、目标检测、自动驾驶中的环境感知。",
        "识别图片中的物体，辅助医生分析医学影像。",
    ],
    "\n- **自然语言处理**：", [
        "机器翻译、智能问答、文本摘要。",
        "机器翻译、对话助手、文章写作。",
        "智能客服、机器翻译、大语言模型。",
    ],
    "\n- **语音技术**：", [
        "语音识别、语音合成、语音助手。",
        "语音助手、实时字幕、语音合成。",
    ],
    [
        "\n- **其他领域**：推荐系统、金融风控、新药研发。",
        "\n- **其他领域**：推荐系统、游戏智能、科学计算。",
        "\n- **决策与控制**：围棋程序AlphaGo、机器人控制。",
        "",
    ],
)

_BALANCE = [
    (
        "\n\n### 优势与挑战",
        ["\n- **优势**：能够自动学习特征，在数据充足时效果远超传统方法。",
         "\n- **优势**：不需要人工设计特征，数据越多，效果往往越好。",
         "\n- **优势**：表达能力强，能够处理图像、语音和文本等复杂的数据。"],
        ["\n- **挑战**：依赖大量数据和算力，训练成本高，而且可解释性较差。",
         "\n- **挑战**：需要大量的数据和计算资源，模型像一个“黑箱”，难以解释。",
         "\n- **挑战**：训练成本高，容易过拟合，决策过程不容易解释。"],
    ),
    (
        ["\n\n### 局限与挑战", "\n\n### 面临的挑战"],
        ["\n- 需要大量的数据，标注数据的成本很高。", "\n- 依赖大量高质量的数据，数据不足时容易过拟合。"],
        ["\n- 训练需要强大的算力，通常要使用GPU。", "\n- 训练大模型需要很多GPU，花费的时间和能源都很多。"],
        ["\n- 可解释性较差，很难说清楚模型为什么这样判断。", "\n- 模型像一个“黑箱”，在医疗等领域要谨慎使用。"],
    ),
]

_CLOSING = [
    "\n\n总的来说，深度学习让计算机能够从数据中自己学习，是当前人工智能发展的主要动力。",
    "\n\n总之，深度学习已经成为人工智能的核心技术，并且还在快速发展。",
    "\n\n随着数据、算力和算法的进步，深度学习还会在更多的领域发挥作用。",
    "\n\n如果你想进一步了解其中的某个部分，例如神经网络或者Transformer，可以继续问我。",
    "\n\n未来的研究方向包括更高效的训练方法、更小的模型以及更好的可解释性。",
    "\n\n今天，从手机上的语音助手到大语言模型，背后都离不开深度学习。",
]

ANSWER_ZH = [
    (_DEFINITION, _CORE, _MODELS, _USES, _BALANCE, _CLOSING),
    (_DEFINITION, _CORE, _MODELS, _USES, _CLOSING),
    (_DEFINITION, _CORE, _USES, _BALANCE, _CLOSING),
]

QUESTIONS_EN = [
    "What is deep learning", "What's deep learning", "Explain deep learning", "Introduce deep learning", "Describe deep learning",
    "Please introduce deep learning", "Please explain deep learning", "Tell me about deep learning", "Can you explain deep learning",
    "Give me an introduction to deep learning", "Give a short introduction to deep learning", "Define deep learning",
    "Could you tell me what deep learning is", "I want to learn about deep learning", "What does deep learning mean", "Deep learning",
    "Briefly introduce deep learning", "How does deep learning work", "Give me an overview of deep learning",
    "Explain deep learning in simple words", "What do you know about deep learning", "Write a short text about deep learning",
]

THINK_EN = (
    [
        "The user asks about deep learning. I should start with a short definition and then explain how it works.",
        "Okay, I need to introduce deep learning. A clear structure will help: definition, training, models and uses.",
        "Let me think about how to explain deep learning clearly without too many technical terms.",
    ],
    [
        "\n\nDeep learning is a branch of machine learning, so I should say how the two are related and what the word deep means.",
        "\n\nFirst the definition: neural networks with many layers that learn features from data.",
    ],
    [
        "\n\nThen I can name the main models, CNN, RNN and Transformer, and give some applications.",
        "\n\nAfter that come the training loop, some well known models and a few examples of use.",
    ],
    [
        "\n\nI should also mention the limits: it needs much data and computing power, and it is hard to interpret.",
        "\n\nTo be fair, the answer should name the weak points too.",
    ],
    "\n",
)

ANSWER_EN = (
    [
        "Deep learning is a branch of machine learning that uses neural networks with many layers. Each layer learns more abstract features from the layer before it, so the network learns directly from data instead of relying on rules written by hand.",
        "Deep learning is a kind of machine learning based on neural networks with many layers. The word \"deep\" refers to the number of layers. Given enough data, such a network learns useful features by itself.",
    ],
    ["\n\n### How it works", "\n\n### Training"],
    "\n1. **Forward pass**: ", ["the data flows through the layers and gives a prediction.", "the input passes through every layer and a prediction comes out."],
    "\n2. **Loss**: ", ["a loss function measures how wrong the prediction is.", "the prediction is compared with the true answer."],
    "\n3. **Backpropagation**: ", ["the gradient of the loss is computed for every parameter.", "the chain rule gives the gradient of every weight."],
    "\n4. **Update**: ", ["an optimizer such as Adam changes the parameters to reduce the loss.", "gradient descent moves the weights a small step in the right direction."],
    ["\n\n### Common models", "\n\n### Typical models"],
    "\n- **CNN**: ", ["good at images.", "finds local patterns in images."],
    "\n- **RNN**: ", ["reads sequences step by step.", "made for sequences such as text and speech."],
    "\n- **Transformer**: ", ["uses attention and is the basis of large language models.", "built on self-attention, the standard for language today."],
    ["\n\n### Applications", "\n\n### Uses"],
    ["\nImage recognition, machine translation, speech recognition, chat assistants and self-driving cars.",
     "\nFace recognition, translation, voice assistants, medical imaging and recommendation systems."],
    [
        "\n\nIts main limits are the need for large amounts of data and computing power, and the difficulty of explaining its decisions.",
        "\n\nDeep learning needs much data and many GPUs, and its decisions are hard to interpret, but it is the main force behind modern AI.",
    ],
)
