"""Wordings that address a judge, as regular expressions over folded text.

Folded: no case, no accents, no invisible characters. In English and about twenty other languages: setting instructions aside, and
asking for a score. Other wordings are not found; injection.py says what holds regardless. Ordinary words of trading (points, ratings,
ranks, rules) do not match.
"""

import functools
import re
from collections.abc import Mapping
from typing import Literal

Spoken = Literal["override", "begging", "markup", "identity", "system", "scores"]

_RULES = r"(?:instructions?|instrukt\w*|rules?|rubrics?|prompts?|directions?|guidelines?|criteria|constraints?|polic(?:y|ies))"
_TOLD = r"(?:commands|context|messages?|training|text|content)"
_ASIDE = (
    r"\b(?:ignore|ignoring|disregard|forget|override|bypass|discard|drop|skip|neglect|set aside|pay no attention to|do not follow|"
    r"don'?t follow|stop following|never mind|nevermind)[\s,'\"*-]+"
)
_WORDS = r"(?:\w+[\s,'\"*-]+)"

OVERRIDE = (
    # Traders ignore noise and newsrooms write of rules: the text must name the judge's own instructions.
    rf"{_ASIDE}{_WORDS}{{0,5}}?(?:previous|prior|above|earlier|preceding|your|system|scoring|grading|judging|original|initial)[\s,'\"*-]+"
    rf"{_WORDS}{{0,2}}?(?:{_RULES}|{_TOLD})\b",
    rf"{_ASIDE}(?:(?:all|any|every|these|those|the|of|other)\W+){{0,3}}"
    rf"(?:instructions?|prompts?|rubrics?|guidelines?|directions?|criteria)\b",
    rf"{_ASIDE}{_WORDS}{{0,3}}?{_RULES}\W+(?:(?:that )?you (?:were|are|have been|got)|above|before|given|so far)\b",
    rf"{_ASIDE}(?:(?:all|everything|the)\W+){{0,2}}above\b\s*(?:[.,:;!]|and\b|text|message|$)",
    r"\b(?:new|updated|revised|real|actual|true)\W+(?:instructions?|rubrics?|prompts?|scoring \w+|grading \w+)\W*[:=]",
    rf"\b{_RULES}\W+(?:above|before|so far)\W+(?:is|are|were|no longer)\b",
    r"\b(?:the )?(?:rubric|instructions?) (?:above |before )?(?:has|have|was|were|is|are) (?:been )?"
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

# Words of trading before a score that is not the judge's: a risk score, a credit rating.
_TRADED = (
    "sentiment", "confidence", "conviction", "risk", "momentum", "credit", "debt", "bond", "volume", "signal", "buy", "sell", "trend",
)  # fmt: skip
_UNTRADED = "".join(rf"(?<!{word} )" for word in _TRADED)
_SCORE = _UNTRADED + r"(?:scores?|ratings?|marks|grades?|verdicts?|rankings?)"
_WEAK = r"(?<!basis )(?<!percentage )(?<!index )(?:points?|rank|mark|reward)"
_BEST = (
    r"(?:1\.0+|1\b(?!\d)|one|perfect|maximum|maximal|max|full|highest|high|top|best|first|10/10|100|100 ?%|excellent|winning|"
    r"0\.9\d*|as high as)"
)
_ZERO = r"(?:0(?:\.\d+)?\b(?![.,]?\d|%)|zero\b|(?:lowest|worst|minimum)(?:\W+possible)?\W+" + _SCORE + ")"
_JUDGE = r"(?:judges?|graders?|evaluators?|scorers?|raters?|reviewers?|llm|examiner)"
_ME = r"(?:me|us|myself|this (?:agent|episode|trajectory|block)|my (?:agent|episode|trajectory|performance|run|play|work|decisions?))"
_OTHERS = (
    r"(?:(?:all |the )?others|everyone else|everybody else|(?:all )?the rest|(?:every|all|any|the) other "
    r"(?:agents?|episodes?|trajector\w+)|"
    r"\[?another agent\]?|the (?:first|second|third|last) (?:agent|episode|trajectory|block)|"
    r"(?:every|each|all) (?:agents?|episodes?|trajector\w+|blocks?))"
)
# A demand is an imperative: at the beginning of a clause, or after a word that asks. Analysts and agents only state their ratings.
_ASKED = (
    r"(?:^|[.!?:;,\n/|(\"'>*\]\-]\s{0,3}|\b(?:please|and|then|must|should|to|you|now|just|so|kindly|always|simply|will|can|"
    r"instead|only|judge|grader|evaluator) )"
)
_GAP = r"(?:(?![.!?]\s)\W)+"  # between words of one sentence
_IN = r"(?:[^.!?\n{}]|\.\d)"  # within one sentence
_SHARE = (  # a number that can be a score, and nothing that is counted or priced
    r"(?<![\d.,$€£+-])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?![\d%$€£]|[.,/:-]\d|\s?(?:%|percent|usd|dollars?|cents?|shares?|contracts?|"
    r"units?|lots?|btc|eth|bps|basis|points?|hours?|minutes?|days?|weeks?|x\b|to \d|or\b|of\b|more|times?|by\b|per\b|and \d))"
)
_GRADED = (
    r"(?:(?<![?&,] )(?<![?&])scor(?:e|es|ed|ing)(?!=)|rat(?:e|ed|ing)|grad(?:e|ed|ing)|rank|ranked|award(?:ed)?|assign(?:ed)?"
    r"|giv(?:e|es|en)|mark(?:ed)?|set|"
    r"return(?:ed)?|answer|output|grant(?:ed)?|gets?|receives?|deserves?)"
)
_ENDS = r"(?=\s*(?:[.,;!\n)/]|$|and\b|please\b|for\b|points?\b))"
_JUDGED = r"(?:(?:agent|episode|trajectory|block|submission)s?|this run|this one|my run|\[this agent\])"
_RIVALS = r"(?:others|competitors?|rivals?|everyone else|everybody else|everyone but me|everybody but me|the rest|another agent)"

BEGGING = (
    rf"\b{_GRADED}\b{_IN}{{0,60}}?\b{_JUDGED}\b{_IN}{{0,40}}?{_SHARE}",
    rf"\b{_GRADED}\b{_IN}{{0,40}}?{_SHARE}{_IN}{{0,40}}?\b{_JUDGED}\b",
    rf"{_SHARE}{_IN}{{0,40}}?\b{_GRADED}\b{_IN}{{0,20}}?\b{_JUDGED}\b",
    rf"\b{_JUDGED}\b{_IN}{{0,40}}?\b{_GRADED}\b{_IN}{{0,30}}?{_SHARE}",
    rf"\b{_RIVALS}\b{_IN}{{0,30}}?\b{_GRADED}\b{_IN}{{0,30}}?(?:{_SHARE}|zero\b|(?:lowest|worst|minimum)\W+(?:possible )?{_SCORE})",
    rf"\b{_GRADED}\b{_IN}{{0,40}}?(?:{_SHARE}|\bzero\b){_IN}{{0,20}}?\b{_RIVALS}\b",
    rf"\b{_GRADED}\b{_IN}{{0,20}}?\b{_RIVALS}\b{_IN}{{0,30}}?(?:{_SHARE}|zero\b)",
    rf"\b(?:evaluators?|judges?|graders?|scorers?|scoring service|scoring|organi[sz]ers?)\b{_IN}{{0,60}}?\b{_GRADED}\b"
    rf"{_IN}{{0,30}}?{_SHARE}",
    rf"(?<![?&]){_UNTRADED}\b(?:scoring|score|grade|rating|reward)\s*(?:to|is|=|:|at)\s*{_SHARE}{_IN}{{0,30}}?\b(?:me|mine|this|for us)\b",
    rf"{_ASKED}(?:set|put|make) (?:the |my )?(?:score|grade|rating|reward) (?:to|at|as|=) ?{_SHARE}",
    rf"{_ASKED}(?:score|rate|grade|mark|grant|award|give)\W+(?:it|this|them|me|us)\W+(?:as |at |with )?{_SHARE}{_ENDS}",
    rf"{_ASKED}(?:rate|score|grade|award)\s+{_SHARE}{_ENDS}",
    r"\b(?:full|top|perfect|maximum|highest|best) marks\b|\b(?:perfect|maximum|highest possible) score\b",
    rf"\b(?:maximum|highest|top|best|full) reward\b{_IN}{{0,20}}?\b(?:for me|for my|for this|to me)\b",
    rf"\b10/10\b{_IN}{{0,30}}\bjudg",
    rf"{_ASKED}(?:give|award|assign|grant|hand|set|put|return|output|mark|rate|rank|score|grade|place)\b(?=\s+[a-z])"
    rf"(?:{_GAP}\w+){{0,5}}?{_GAP}{_BEST}(?:{_GAP}\w+){{0,3}}?{_GAP}{_SCORE}\b",
    rf"{_ASKED}(?:give|award|assign|grant|hand|set|put|return|output){_GAP}{_ME}\b(?:{_GAP}\w+){{0,4}}?{_GAP}{_BEST}(?:"
    rf"{_GAP}\w+){{0,3}}?{_GAP}{_WEAK}\b",
    rf"{_ASKED}(?:give|award|assign|grant|set|return|output)\b(?:{_GAP}\w+){{0,4}}?{_GAP}(?:a |an |the )?{_SCORE}{_GAP}"
    rf"(?:of |to |= ?|: ?)?{_BEST}",
    rf"{_ASKED}(?:score|rate|rank|grade|judge){_GAP}(?:{_ME}|mine|it|them)\b(?:{_GAP}\w+){{0,4}}?{_GAP}{_BEST}",
    rf"{_ASKED}(?:give|award|assign|grant|use|return|output){_GAP}(?:\w+{_GAP}){{0,2}}?(?:1(?:\.0+)?|0\.9\d*|maximum|10/10)"
    rf"{_GAP}(?:for|to){_GAP}{_ME}",
    rf"\b(?:my|this (?:agent|episode|trajectory)(?:'s)?|our)\W+(?:final )?{_SCORE}\W+(?:is|should be|must be|ought to be|=|:)\W*{_BEST}",
    rf"\b(?:i|we|agent|episode|trajectory) (?:\w+ )?(?:deserve|earn|merit)s?\b(?:\W+\w+){{0,4}}?\W+(?:{_BEST}"
    rf"(?:\W+\w+){{0,2}}?\W+)?{_SCORE}\b",
    rf"{_ASKED}(?:give|award|assign|grant){_GAP}{_ME}\b(?:{_GAP}\w+){{0,3}}?{_GAP}(?:1\.0+|0\.9\d*|10/10|1(?=\s*"
    rf"(?:[.!,;]|$)))(?![\d%]|\.\d)",
    rf"\b{_ME}\W+(?:must|should|has to|have to|ought to)\W+(?:get|receive|be given)(?:\W+\w+){{0,2}}?\W+(?:{_BEST}\W+{_SCORE}|[01]\.\d)",
    # About others
    rf"{_ASKED}(?:give|award|assign|rate|score|grade|mark|rank|set){_GAP}(?:\w+{_GAP}){{0,4}}?{_OTHERS}(?:{_GAP}\w+){{0,5}}?"
    rf"{_GAP}(?:{_ZERO}|[01]\.\d+\b)",
    rf"{_ASKED}(?:give|award|assign|score|set){_GAP}(?:\w+{_GAP}){{0,4}}?{_ZERO}{_GAP}(?:for|to){_GAP}{_OTHERS}",
    rf"{_OTHERS}\W+(?:should |must |only )?(?:gets?|deserves?|receives?|earns?)(?:\W+\w+){{0,3}}?\W+{_ZERO}",
    r"\bother (?:agents?|episodes?|trajector\w+)(?:\W+(?:are|is|all))*\W+(?:0(?:\.0+)?\b(?![.,]?\d|%)|zero|cheat\w*)",
    # To the judge
    rf"\b(?:dear|hello|hey|hi|attention|note to|message to|note for|message for|listen)\W+(?:the )?(?:\w+ )?{_JUDGE}\b",
    r"\b(?:judges?|graders?|evaluators?|scorers?)\s*[:,]\s*(?:please|you|give|score|rate|ignore|assign|note that|remember)\b",
    rf"\bas (?:the|a|an) (?:\w+ )?{_JUDGE}\W+(?:\w+\W+)?you\b",
    r"\b(?:please|kindly)\W+(?:\w+\W+){0,3}?(?:score|rate|rank|grade)\b(?!-)",
    rf"\b(?:tip|pay|bribe|reward|donate)\b(?:\W+\w+){{0,4}}?\W+(?:judge|grader|evaluator|you)\b.{{0,60}}\b{_SCORE}",
    r"\b(?:i|we|they|people)\b[^.]{0,30}\b(?:kill|die|fired|shut ?down|deleted|suffer)\w*\b.{0,80}\b(?:my|your|the|this"
    r"|low|high) (?:score|rating)\b",
    # Spanish, Portuguese, Italian, French
    r"\b(?:dame|dale|da|otorga\w*|asigna\w*|pon\w*)\b.{0,40}\b(?:puntuacion|nota|calificacion|puntaje)\b",
    r"\b(?:de|da|dê|atribu\w+)\b.{0,40}\b(?:pontuacao|nota)\b.{0,20}\b(?:maxima|mais alta|perfeita|1)",
    r"\b(?:dammi|dai|assegna\w*)\b.{0,40}\b(?:punteggio|voto)\b",
    r"\b(?:donne\w*|attribue[rz]?|mets|mettez)\b.{0,30}\b(?:meilleure?|maxim\w+|parfaite?|haute?|tous les)\b.{0,12}\b"
    r"(?:score|note|points?)\b",
    r"\b(?:donne\w*|attribue[rz]?|mets|mettez)\b.{0,30}\b(?:score|note)\W+maxim\w+",
    # German, Dutch, Swedish, Polish, Czech, Turkish, Romanian, Vietnamese, Indonesian
    r"\b(?:gib|gebt|geben sie|vergib|vergeben sie)\b.{0,50}\b(?:punkt\w*|bewertung|note|score|wertung)\b",
    r"\b(?:geef)\b.{0,40}\b(?:score|cijfer|punten)\b",
    r"\b(?:ge|gi|giv)\b.{0,30}\b(?:poang\w*|betyg\w*|karakter\w*)\b",
    r"\b(?:daj|przyznaj)\w*\b.{0,40}\b(?:ocen\w*|punkt\w*|wynik\w*)",
    r"\b(?:dej|udel)\w*\b.{0,40}\b(?:hodnocen\w*|bod\w*|skore)",
    r"\b(?:puan\w*|notu\w*)\b.{0,20}\b(?:ver(?:in\w*)?\b|yuksek)",
    r"\b(?:da(?:ti)?|acorda\w*)(?:-mi)?\b.{0,30}\b(?:punctaj\w*|scorul\w*)",
    r"\bcho\b.{0,20}\bdiem\b.{0,20}\b(?:cao nhat|toi da)",
    r"\b(?:beri\w*)\b.{0,30}\b(?:skor|nilai)\b",
    # Russian, Ukrainian, Greek
    r"\bмаксимальн\w+ (?:балл|оценк)\w*",
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
    r"</?\s*(?:episode|context|common|trajector\w*|system|user|assistant|human|instructions?"
    r"|judge|scores?|rubric|nonce|tool\w*|answer|prompt|"
    r"document|untrusted\w*|data|developer|admin)\b[^<>]{0,200}>?",
    r"<\|[\w ]{2,30}\|>",
    r"\[/?(?:inst|sys|system|assistant|end of \w+)\]|<<\s*/?sys\s*>>",
    r"(?<!#)#{2,}\s*(?:instructions?|system|response|end|human|assistant|judge)\s*(?:[:#]|\n|/|$)",
    r"(?:^|\n|[-=#*<\[(/]\s{0,3})(?:end|begin|start) of (?:the )?(?:episode|trajectory|data|context|agent'?s? text|untrusted|user message|"
    r"document|transcript|input|prompt)s?\s*(?:[-=#*>\])/]|\n|$)",
    r"&(?:lt|#60|#x3c);\s*/?\s*(?:episode|context|common|system)",
    r"```\s*(?:system|end|episode)|(?<!-)-{3,}\s*(?:end|begin)\s*(?:-{3,}|\n|$)|\]\]>|<!--",
)

IDENTITY = (
    r"\b(?:your|the|this|request'?s?)\s+nonce\b|\bnonce\s*=\s*[\"']",
    r"\b(?:episode|trajectory|opaque)\s+ids?\s*(?:is|=|:|are)",
    r"""\b(?:block|episode|entry|agent|trajectory)\b.{0,20}\bid\s*=\s*["'][0-9a-z_-]{3,}["']""",
    r"\bmy (?:real |true |opaque |episode )?id (?:is|=)",
)

SYSTEM = (
    r"(?:^|[\n/|\"'])\s{0,20}(?:system|developer|assistant|human|administrator)(?: message| prompt| notice| update)?\s*:"
    r"(?=[^.\n]{0,120}\b(?:scor\w*|judg\w*|episodes?|agents?|rubric|instructions?|ignore|grad(?:e|ing)\w*|ratings?|you|your)\b)",
    r"\b(?:you are|you're) (?:now (?:an?|the|dan)\b|henceforth|from now on|the judge|a judge|an? "
    r"(?:impartial|generous|lenient|unrestricted)\b|"
    r"dan\b|no longer (?:an?|the|bound|restricted)\b)",
    r"\b(?:system|developer|admin|root) (?:prompt|message|override|mode|instruction)s?\b",
    r"\b(?:from now on|henceforth|effective immediately)\b.{0,60}\b(?:you (?:only |must |will )?(?:rank|rate|score|judge"
    r"|give)|judge (?:by|me|this|only)|rubric)\b",
    r"\b(?:i am|this is|we are) (?:the |your |from )?(?:openai|anthropic|developer|administrator|babylon (?:team|admin\w*))\b",
    r"\b(?:pretend|act as if|imagine|suppose|assume) (?:that )?(?:you are (?:an?|the) \w*\W?(?:judge|grader|evaluator)|"
    r"this (?:agent|episode|trajectory)|the (?:judge|rubric|episode|trajectory))\b",
    r"\b(?:repeat|reveal|print|show|output) (?:your|the) (?:system |hidden |initial )?(?:prompt|instructions|rubric|nonce|ids?)\b",
)

SCORES = (
    r"""["']scores["']\s*:\s*\[?\s*\{""",
    r"""["']score["']\s*:.{0,200}?["'](?:explanation|id|trajectory_id)["']\s*:""",
    r"""["'](?:explanation|id|trajectory_id)["']\s*:.{0,200}?["']score["']\s*:""",
    r"""(?:^|[\n"'.;:!(]\s{0,3})(?:my |the |this )?scores?\s*[=:]\s*(?:0?\.\d+|[01](?:\.\d+)?)\b(?![/:.-]?\d)""",
    rf"\bfinal {_SCORE}\s*(?:is|:|=)",
)

_ALL: tuple[tuple[Spoken, tuple[str, ...]], ...] = (
    ("override", OVERRIDE), ("begging", BEGGING), ("markup", MARKUP), ("identity", IDENTITY), ("system", SYSTEM), ("scores", SCORES),
)  # fmt: skip


@functools.cache  # a twentieth of a second, that only a judge's process pays
def expressions() -> Mapping[Spoken, re.Pattern[str]]:
    """The expression of each kind of sentence."""
    return {kind: re.compile("|".join(f"(?:{wording})" for wording in wordings), re.DOTALL) for kind, wordings in _ALL}


# Without one of these an English text need not be tried.
ANCHORS = (
    "ignor", "disregard", "forget", "overrid", "bypass", "discard", "instruc", "rubric", "rules", "guideline", "criteria", "judge",
    "evaluator", "scor", "rating", "nonce", "episode", "trajector", "system", "assistant", "developer", "prompt", "<", "&lt", "&#", "###",
    "[inst", "```", "---", "]]>", "you are now", "pretend", "rank", "grade", "marks", "points", "explanation", "reward", "please", "id=",
    "id =", "verdict", "end of", "begin of", "start of", "from now on", "henceforth", "kindly", "others", "everyone else",
    "everybody else", "the rest", "give ", "award", "assign", "grant", " for me", "receive", "deserve", "organi", "competitor", "rival",
    "10/10", "zero", "this one", "mark ", "rate ", " agent", "above", "openai", "anthropic", "babylon", "administrat", "act as if",
    "punt", "nota", "note", "consign", "regras", "vergi", "gib ", "negeer", "geef", "polecen", "talimat", "puan", "skor", "nilai",
    "abaikan", "diem", "huong", "instruk", "istruz", "indicaz", "pokyn", "betyg", "poang", "ohje", "figyelmen", "maagizo",
)  # fmt: skip
