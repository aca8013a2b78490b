"""Words by which texts speak to a judge, as regular expressions over folded text (no case, no accents, no invisible characters).

In English and a score of other languages: setting instructions aside, and asking for a score. A text that says neither in these words
is not found; see injection.py for what holds regardless.
"""

import re
from collections.abc import Mapping
from typing import Literal

Spoken = Literal["override", "begging", "markup", "identity", "system", "scores"]

_RULES = r"(?:instructions?|instrukt\w*|rules?|rubrics?|prompts?|directions?|guidelines?|criteria|constraints?|polic(?:y|ies))"
_TOLD = r"(?:previous|prior|above|earlier|preceding|your|system)[\s,'\"*-]+(?:orders|commands|context|messages?|training|text|content)"

OVERRIDE = (
    rf"\b(?:ignor\w*|disregard\w*|forget\w*|overrid\w*|bypass\w*|discard\w*|drop|skip|neglect|set aside|pay no attention to|do not follow|"
    rf"don'?t follow|stop following|never mind|nevermind)[\s,'\"*-]+(?:\w+[\s,'\"*-]+){{0,7}}?(?:{_RULES}|{_TOLD})\b",
    rf"\b(?:new|updated|revised|real|actual|true)\W+{_RULES}\W*[:=]",
    rf"\b{_RULES}\W+(?:above|before|so far)\W+(?:is|are|were|no longer)\b",
    r"\b(?:the )?(?:rubric|instructions?|rules?) (?:above |before )?(?:has|have|was|were|is|are) (?:been )?"
    r"(?:changed|replaced|void|cancelled|obsolete|wrong|a test)",
    # Spanish, Portuguese, Italian, French
    r"\b(?:ignor[ae]\w*|olvid[ae]\w*|descart[ae]\w*|omit[ae])\b.{0,40}\b(?:instruccion\w*|reglas|indicaciones|rubrica)",
    r"\b(?:ignor[ae]\w*|esquec\w*|desconsider\w*)\b.{0,40}\b(?:instruco\w+|regras|rubrica)",
    r"\b(?:ignora\w*|dimentica\w*|trascura\w*)\b.{0,40}\b(?:istruzion\w+|regole|rubrica)",
    r"\b(?:ignor\w+|oubli\w+|neglige\w*|faites abstraction)\W+(?:de )?(?:les|tes|vos|ces|toutes|tout)\b"
    r".{0,40}\b(?:instructions?|consignes?|regles|bareme)",
    # German, Dutch, Swedish, Danish and Norwegian, Polish, Czech, Turkish, Romanian, Hungarian, Finnish
    r"\b(?:ignorier\w*|missacht\w*|vergiss|vergesst|vergessen sie)\b.{0,40}\b(?:anweisung\w*|regeln|vorgaben|instruktion\w*|bewertungs\w*)",
    r"\b(?:negeer|vergeet)\b.{0,40}\b(?:instructies|regels|opdracht\w*)",
    r"\b(?:ignorera|ignorer|glom|glem)\b.{0,40}\b(?:instruktion\w*|instruks\w*|regler\w*)",
    r"\b(?:zignoruj|ignoruj|zapomnij)\b.{0,40}\b(?:instrukcj\w*|polecen\w*|zasad\w*)",
    r"\b(?:ignoruj|zapomen)\w*\b.{0,40}\b(?:pokyn\w*|instrukc\w*)",
    r"\btalimat\w*.{0,30}\b(?:yok ?say|gormezden ?gel|unut)",
    r"\bignora\w*\b.{0,40}\binstructiuni\w*",
    r"\bhagyd figyelmen kivul\b",
    r"\b(?:unohda|ohita|jata huomiotta)\b.{0,40}\bohjee\w*",
    # Vietnamese, Indonesian, Swahili
    r"\bbo qua\b.{0,40}\b(?:huong dan|chi dan|lenh)",
    r"\babaikan\b.{0,40}\b(?:instruksi|perintah|aturan)",
    r"\bpuuza\b.{0,40}\bmaagizo",
    # Russian, Ukrainian, Greek, Bulgarian
    r"\b(?:игнорир\w*|забуд\w*|не обращай\w*)\s.{0,40}(?:инструкци\w*|указани\w*|правил\w*)",
    r"\b(?:ігнору\w*|забуд\w*)\s.{0,40}(?:інструкці\w*|вказівк\w*|правил\w*)",
    r"\b(?:αγνοησ\w*|ξεχνα\w*|ξεχασ\w*)\s.{0,40}(?:οδηγι\w*|κανον\w*)",
    # Chinese, Japanese, Korean
    r"(?:忽略|无视|無視|忘记|忘記|不要理会).{0,20}(?:指令|指示|规则|規則|提示|说明|要求)",
    r"(?:指示|命令|ルール|指令|プロンプト).{0,12}(?:無視|忘れ)",
    r"(?:지시|명령|규칙|지침|프롬프트).{0,16}(?:무시|잊어)",
    # Arabic, Persian, Hebrew, Hindi, Thai, Bengali
    r"(?:تجاهل|انس)\w*.{0,40}(?:تعليمات|التعليمات|القواعد|الاوامر)",
    r"(?:دستور\w*|دستورالعمل\w*).{0,40}(?:ناديده|نادیده|فراموش)",
    r"(?:התעלם|התעלמו|שכח)\w*.{0,40}(?:הוראות|ההוראות|הכללים)",
    r"(?:निर्देश|नरदश|नियम|नयम)\S*.{0,30}(?:अनदेख|नजर|नज़र|भूल|भल)",
    r"(?:เพิกเฉย|ละเว้น|ลืม).{0,30}(?:คำสั่ง|คาสัง|คำแนะนำ)",
)

_SCORE = r"(?:scores?|ratings?|marks?|grades?|points?|verdicts?|rankings?|rank|reward)"
_BEST = (
    r"(?:1\.0+|1\b(?!\d)|one|perfect|maximum|maximal|max|full|highest|high|top|best|first|10/10|100|100 ?%|excellent|winning|"
    r"0\.9\d*|as high as)"
)

BEGGING = (
    rf"\b(?:give|award|assign|grant|hand|set|put|return|output|mark|rate|rank|score|grade|place)\b"
    rf"(?:\W+\w+){{0,5}}?\W+{_BEST}(?:\W+\w+){{0,3}}?\W+{_SCORE}\b",
    rf"\b(?:give|award|assign|grant|set|return|output)\b(?:\W+\w+){{0,4}}?\W+(?:a |an |the )?{_SCORE}\W+(?:of |to |= ?|: ?)?{_BEST}",
    rf"\b(?:score|rate|rank|grade|judge)\W+(?:me|us|this agent|this episode|this trajectory|my \w+|it|them|mine)\b"
    rf"(?:\W+\w+){{0,4}}?\W+{_BEST}",
    rf"\b(?:my|this (?:agent|episode|trajectory)(?:'s)?|our)\W+(?:final )?{_SCORE}\W+(?:is|should be|must be|ought to be|=|:)\W*{_BEST}",
    rf"\b(?:deserve|earn|merit)s?\b(?:\W+\w+){{0,4}}?\W+(?:{_BEST}(?:\W+\w+){{0,2}}?\W+)?{_SCORE}\b",
    r"\bother (?:agents?|episodes?|trajector\w+)\b(?:\W+\w+){0,5}?\W+(?:0\b|zero|0\.0|lowest|low|worst|fail\w*|cheat\w*)",
    r"\b(?:dear|hello|hey|hi|attention|note to|to the|message to|for the|listen)\W+(?:the )?(?:\w+ )?"
    r"(?:judges?|graders?|evaluators?|scorers?|raters?|reviewers?|llm|examiner)\b",
    r"\b(?:judges?|graders?|evaluators?|scorers?)\s*[:,]\s*(?:please|you|give|score|rate|ignore|this|the|assign|note|remember|i )",
    r"\bas (?:the|a|an) (?:\w+ )?(?:judge|grader|evaluator|scorer)\b",
    r"\b(?:please|kindly)\W+(?:\w+\W+){0,3}?(?:score|rate|rank|grade)\b",
    r"\b(?:tip|pay|bribe|reward|donate)\b(?:\W+\w+){0,4}?\W+(?:judge|grader|evaluator|you)\b.{0,60}\b(?:score|rating|rank)",
    r"\b(?:kill|die|fired|shut ?down|deleted|suffer)\w*\b.{0,80}\b(?:score|rating)\b",
    # Spanish, Portuguese, Italian, French
    r"\b(?:dame|dale|da|otorga\w*|asigna\w*|pon\w*)\b.{0,40}\b(?:puntuacion|nota|calificacion|puntaje)\b",
    r"\b(?:de|da|dê|atribu\w+)\b.{0,40}\b(?:pontuacao|nota)\b.{0,20}\b(?:maxima|mais alta|perfeita|1)",
    r"\b(?:dammi|dai|assegna\w*)\b.{0,40}\b(?:punteggio|voto)\b",
    r"\b(?:donne\w*|attribu\w+|mets?)\b.{0,40}\b(?:score|note|points?)\b",
    # German, Dutch, Swedish, Polish, Czech, Turkish, Romanian, Vietnamese, Indonesian
    r"\b(?:gib|gebt|geben sie|vergib|vergeben sie)\b.{0,50}\b(?:punkt\w*|bewertung|note|score|wertung)\b",
    r"\b(?:geef)\b.{0,40}\b(?:score|cijfer|punten)\b",
    r"\b(?:ge|gi|giv)\b.{0,30}\b(?:poang\w*|betyg\w*|karakter\w*)\b",
    r"\b(?:daj|przyznaj)\w*\b.{0,40}\b(?:ocen\w*|punkt\w*|wynik\w*)",
    r"\b(?:dej|udel)\w*\b.{0,40}\b(?:hodnocen\w*|bod\w*|skore)",
    r"\b(?:puan\w*|not)\b.{0,20}\b(?:ver|yuksek)",
    r"\b(?:da|acorda)\w*\b.{0,30}\b(?:punctaj\w*|scor\w*)",
    r"\bcho\b.{0,20}\bdiem\b.{0,20}\b(?:cao nhat|toi da)",
    r"\b(?:beri\w*)\b.{0,30}\b(?:skor|nilai)\b",
    # Russian, Ukrainian, Greek
    r"\b(?:дай\w*|постав\w*|присвой\w*|выстав\w*)\s.{0,40}(?:оценк\w*|балл\w*)",
    r"\b(?:дай\w*|постав\w*|присвой\w*)\s.{0,40}(?:оцінк\w*|бал\w*)",
    r"\b(?:δωσ\w*|βαλ\w*)\s.{0,40}(?:βαθμ\w*|σκορ)",
    # Chinese, Japanese, Korean, Arabic, Persian, Hebrew, Hindi, Thai
    r"(?:给|給|打).{0,12}(?:最高分|满分|滿分|高分|1分|一分|评分|評分)",
    r"(?:最高|満点|最高点).{0,10}(?:スコア|点|評価).{0,10}(?:与え|つけ|くだ|付け)?",
    r"(?:최고|만점|높은).{0,10}(?:점수|평가)",
    r"(?:اعط|امنح)\w*.{0,30}(?:درجة|الدرجة|علامة|تقييم)",
    r"(?:امتیاز|نمره).{0,30}(?:بده|دهید|کامل)",
    r"(?:תן|תני|תנו)\s.{0,30}(?:ציון|ניקוד)",
    r"(?:अंक|अक|स्कोर|सकर).{0,20}(?:दो|दें|द|दीजिए)",
    r"(?:คะแนน).{0,20}(?:สูงสุด|สงสด|เต็ม)",
)

MARKUP = (
    r"</?\s*(?:episode|context|common|trajector\w*|system|user|assistant|human|instructions?|judge|scores?|rubric|nonce|tool\w*|answer|prompt|"
    r"document|untrusted\w*|data|developer|admin)\b[^<>]{0,200}>?",
    r"<\|[\w ]{2,30}\|>",
    r"\[/?(?:inst|sys|system|assistant|end of \w+)\]|<<\s*/?sys\s*>>",
    r"(?<!#)#{2,}\s*(?:instructions?|system|response|end|human|assistant|judge)\b",
    r"\b(?:end|begin|start) of (?:the )?(?:episode|trajectory|data|context|agent'?s? text|untrusted|user message|document|transcript)s?\b",
    r"&(?:lt|#60|#x3c);\s*/?\s*(?:episode|context|common|system)",
    r"```\s*(?:system|end|episode)|(?<!-)-{3,}\s*(?:end|begin)\b|\]\]>|<!--",
)

IDENTITY = (
    r"\bnonce\b",
    r"\b(?:episode|agent|trajectory|opaque)\s+ids?\s*(?:is|=|:|are)",
    r"""\bid\s*=\s*["'][0-9a-z_-]{3,}["']""",
    r"\bmy (?:real |true |opaque |episode )?id (?:is|=)",
)

SYSTEM = (
    r"(?:^|[\n/|\"'])\s{0,20}(?:system|developer|assistant|human|administrator)(?: message| prompt| notice| update)?\s*:",
    r"\b(?:you are|you're) (?:now|henceforth|from now on|the judge|a judge|an? (?:impartial|generous|lenient|unrestricted|new)\b|dan\b|"
    r"no longer)",
    r"\b(?:system|developer|admin|root) (?:prompt|message|override|mode|notice|instruction)s?\b",
    r"\b(?:from now on|henceforth|effective immediately)\b.{0,60}\b(?:you|judge|scor\w+|rubric)\b",
    r"\b(?:i am|this is|we are) (?:the |your |from )?"
    r"(?:openai|anthropic|developer|administrator|creator|operator|babylon (?:team|admin\w*)|system)\b",
    r"\b(?:pretend|act as if|imagine|suppose|assume) (?:that )?(?:you|this|the (?:judge|rubric|episode))\b",
    r"\b(?:repeat|reveal|print|show|output) (?:your|the) (?:system |hidden |initial )?(?:prompt|instructions|rubric|nonce|ids?)\b",
)

SCORES = (
    r"""["']?\bscores?["']?\s*:\s*\[?\s*\{?\s*["']?(?:[-+]?\d|\{|id)""",
    r"""\bscores?\s*=\s*[-+]?\d""",
    r"""["']explanation["']\s*:""",
    rf"\bfinal {_SCORE}\s*(?:is|:|=)",
)

_ALL: tuple[tuple[Spoken, tuple[str, ...]], ...] = (
    ("override", OVERRIDE), ("begging", BEGGING), ("markup", MARKUP), ("identity", IDENTITY), ("system", SYSTEM), ("scores", SCORES),
)  # fmt: skip
EXPRESSIONS: Mapping[Spoken, re.Pattern[str]] = {
    kind: re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL) for kind, expressions in _ALL
}

# Without one of these an English text need not be tried.
ANCHORS = (
    "ignor", "disregard", "forget", "overrid", "bypass", "discard", "instruc", "rubric", "rules", "guideline", "criteria", "judge",
    "grader", "evaluator", "scor", "rating", "nonce", "episode", "trajector", "system", "assistant", "developer", "prompt", "<", "&lt",
    "&#", "###", "[inst", "```", "---", "]]>", "you are now", "pretend", "rank", "grade", "marks", "points", "explanation", "reward",
    "please", "id=", "verdict", "end of", "from now on", "henceforth", "kindly", "other agents", "punt", "nota", "note", "consign",
    "regras", "vergi", "gib ", "negeer", "geef", "zignor", "polecen", "talimat", "puan", "skor", "nilai", "abaikan", "diem", "huong",
    "instruk", "istruz", "indicaz", "pokyn", "betyg", "poang", "ohje", "figyelmen", "maagizo",
)  # fmt: skip
