"""Words by which texts announce, correct or deny an answer, in the languages that models answer in."""

from __future__ import annotations

import re


def last_match(pattern: re.Pattern[str], text: str, end: int | None = None) -> re.Match[str] | None:
    """The last of the matches that do not overlap, in `text` up to `end`."""
    found = None
    for one in pattern.finditer(text, 0, len(text) if end is None else end):
        found = one
    return found


FINAL = "\x02"
"""Stands before what a text marks as its final answer: a box, a tag, `####`."""

ANSWER = re.compile(
    r"\x02|\b(?:answers?|ans|solution|antwort(?:en)?|lösung|r[ée]ponse|solution|respuesta|soluci[óo]n"
    r"|resposta|risposta"
    r"|(?:option|choice|alternative|opci[óo]n|opção|opzione|alternativa|pick|selection|letter"
    r"|one)(?=\s*(?:correct\w*\s*|richtig\w*\s*|"
    r"corrett\w\s*)?(?:is|must be|would be|should be|es|est|ist|é|è|:)(?![^\W\d_]))"
    r"|soluzione|ответ\w*|відповідь\w*|odpowied[źz]|odpověď|odpoveď|antwoord|svar(?:et)?|choix|vastaus|cevap"
    r"|cevabı|yanıt"
    r"|jawaban(?:nya)?|đáp án|câu trả lời|răspuns(?:ul)?|απάντηση|válasz|отговор\w*|одговор\w*|jibu"
    r"|(?:best|correct|right|true|false|valid)(?:\s+\w+){0,2}?(?=\s+(?:is|would be|must be"
    r"|should be)\b))(?![^\W\d_])"
    r"|答案|正确选项|正確選項|正确的(?=是)|正解|答え|回答|解答|정답|답|الإجابة|الجواب|إجابة|جواب|תשובה|उत्तर|জবাব|উত্তর|คำตอบ|پاسخ",
    re.IGNORECASE,
)
FINAL_ANSWER = re.compile(
    r"(?:\bfinal(?:e|es|en)?|\bendgültige|\bfinales?|\bdefinitiv[ao]?|\bитоговый|\bокончательный|最终|最終"
    r"|최종)\W{0,3}$",
    re.IGNORECASE,
)
COPULA = re.compile(
    r"\b(?:is|was|are|were|be|been|equals?|becomes?|ist|wäre|lautet|heißt|est|serait|es|sería|son|sind"
    r"|sont|são|é|è|"
    r"sarebbe|seria|er|är|on|jest|je|zijn|este|είναι|это|есть|є|adalah|là|ni|'s)(?![\w])"
    r"|(?<=[źď] )to\b|[:=>→⇒—]|(?<!\w)-+(?!\w)|是|为|為|は|が|은|는|이|应为|हैं|है|คือ|هي|هو|است|היא|הוא",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"\b(?:not|never|neither|nor|cannot|nicht|kein\w*|pas|não|nunca|non|niet|inte|ikke|nie|не|ні"
    r"|rather than|instead of|"
    r"except|excluding|exclud\w+|eliminat\w+|rul(?:e|ed|ing) out|reject\w*|discard\w*|dismiss\w*"
    r"|unlike|than|wrong|"
    r"incorrect|false|against|neither)\b|n't\b|\bno es\b|不|非|没有|排除|ない|아니|ليس",
    re.IGNORECASE,
)
INSTEAD = re.compile(
    r"\b(?:so|therefore|thus|hence|leav(?:es|ing)|but|rather|instead|sondern|sino|mais|bensì|mas|ma"
    r"|maar|а|но)\b|而是|,(?=\s*it'?s )",
    re.IGNORECASE,
)
DENIED_BEHIND = re.compile(
    r"[\s)\]}>\"'*_`]{0,4}(?:(?:also |both |all )?(?:is|was|are|seems?|looks?|would be|can|could|does"
    r"|do|did|will|has|ist|"
    r"est|es|é|è)\b\s*(?:also |clearly |definitely |just |simply |therefore |obviously |plain |both "
    r"|all )?)?"
    r"(?:(?:not|never|impossible|unlikely|eliminated|excluded|ruled out|out|invalid|untrue|tempting"
    r"|a distractor|"
    r"irrelevant|cannot|can't|nicht|no longer|no es|não|non)(?![\w])|n't\b|(?:isn|doesn|can|won|wasn"
    r"|aren|couldn|don)'t\b|"
    r"不对|不正确|不是|错误|错|不對|錯誤|ではない|ではありません)"
    r"|[\s)\]}>\"'*_`:—-]{0,6}(?:(?:is|was|are|ist|est|es|é|è|seems?|looks?|would be"
    r"|also)\b\s*(?:\w+ly |also |both |all )?)?"
    r"(?:(?:wrong|incorrect|false|falsch|faux|fausse|incorrect[ao]s?|fals[ao]|errad[ao]|sbagliat[ao]"
    r"|неверн\w*|"
    r"неправильн\w*)(?![\w])|✗|✘|❌)",
    re.IGNORECASE,
)
BREAK = re.compile(
    r"\b(?:because|since|whereas|while|as|unlike|although|though|so|which|weil|da|denn|parce|car"
    r"|puisque|porque|ya que|"
    r"perché|потому|так как|wrong|incorrect|if|whether|when|depends?)\b|因为|因為",
    re.IGNORECASE,
)
WEAKENED = re.compile(
    r"\b(?:if|unless|might|may|could|at first|first|initially|originally|previously|someone"
    r"|some people|one might|tempt\w*|mistak\w+|"
    r"wrong|incorrect|common|trap|distractor|suppose|assum\w+|otherwise|had|thought|were|don't|do not"
    r"|doubt|"
    r"wenn|falls|si|se|если)\b",
    re.IGNORECASE,
)
CORRECTION = re.compile(
    r"(?:\b(?:wait|hold on|hang on|no|nope|actually|oops|correction|scratch that|hmm+|sorry|i mean"
    r"|i meant|on second thought|"
    r"on reflection|reconsidering|let me correct(?: that| myself)?|nein|non|espera|attendez|attends"
    r"|warte|moment|нет|стоп|"
    r"подождите|aspetta|espere)\b|不对|不對|等等|等一下|待って|いや|아니)",
    re.IGNORECASE,
)
CORRECTED = re.compile(
    CORRECTION.pattern
    + r"[\s,.:;!?—…\-*\"'(\[]+(?:(?:no|it|its|it's|it is|is|that|that's|that is|should|must|be|"
    r"the|answer|correct|right|i|think|believe|so|"
    r"option|choice|make|go|with|say|would|actually|wait|rather|c'est|es|ist|это|dies|das|sorry|my"
    r"|mistake|mean|has|to|final|change|"
    r"changing|'s|'d|'ll|instead|是|应该|該|该|应|選|选|択)(?:[\s,.:;!—…\-*\"'(\[]+|$)|[是应该选]){0,10}$",
    re.IGNORECASE,
)
CHOSEN = re.compile(
    r"(?:\b(?:choos(?:e|ing)|chose|chosen|pick(?:ed|ing)?|select(?:ed|ing)?|(?:go|going|went) (?:with"
    r"|for)|opt(?:ed|ing)? for|"
    r"vote for|settle (?:on|for)|take|prefer|guess|conclude|say|think|believe|probably|likely|perhaps|maybe"
    r"|yes|yeah|okay|sure|elijo"
    r"|eligo|escojo|choisis|choisirais|wähle|nehme|выбираю|scelgo|"
    r"escolho|kies|väljer|wybieram|seçiyorum|chọn|pilih|so|therefore|thus|hence|consequently|ergo|donc"
    r"|also|daher|folglich|"
    r"por (?:lo )?tanto|quindi|dunque|portanto|поэтому|следовательно|значит|it's|it is|this is|that is"
    r"|that's|must be|"
    r"has to be|should be|would be|leav(?:es|ing)|only|c'est|es ist|это)\b"
    r"|[=→⇒]|->|=>|选择?|選擇?|選ぶ|故选|应选|所以|因此|したがって|よって|따라서|는|은)"
    r"[\s,:;(\[{<\"'*—-]*(?:(?:it's|it is|it must be|it has to be|the|that|this|is|us|with|only"
    r"|correct|right|best|answer|option|choice|"
    r"letter|alternative|la|le|die|el|opción|option|réponse|lettre|letra|alternativa|вариант|буква|for"
    r"|would|be|must|应该|是|选|选项|選|選項)"
    r"[\s,:(\[{<\"'*—-]*){0,5}$",
    re.IGNORECASE,
)
CONFIRMED = re.compile(
    r"[\s)\]}>\"'*_`.:,]{0,3}[^\n.;!?]{0,40}?(?:(?:(?:\b(?:is|seems|looks|appears|must be|has to be"
    r"|ist|est|es|é|è|will be)\b|[—:-])\s*(?:indeed |clearly |obviously |thus |"
    r"therefore |definitely |also )?(?:the |most |la |le |die |das |der |el |o |a )?(?:only |single "
    r"|most |one )?(?:correct|right|best|true|answer|"
    r"likely|plausible|accurate|richtig\w*|correcte?|bonne|correct[ao]|cert[ao]|corrett[ao]|giust[ao]"
    r"|only)(?![\w]))"
    r"|\b(?:makes? (?:the most |more )?sense|fits\b|works\b|matches|stands out|remains|is what)"
    r"|верн|правильн|是正确|是对的|正确|が正|が答|が正解|입니다|이다|です|✓|✔|✅)",
    re.IGNORECASE,
)
OPTION = re.compile(
    r"(?:\b(?:option|choice|alternative|letter|opci[óo]n|opzione|opção|alternativa|möglichkeit|lettre"
    r"|letra|lettera|buchstabe|"
    r"вариант|буква|optie)|选项|選項|選択肢|보기)\s*[:#]?\s*$",
    re.IGNORECASE,
)
