"""The class of every character that the Llama patterns tell apart, as one letter each.

    a lower case (Ll)   A upper and title case (Lu, Lt)   o other letters (Lm, Lo)   c marks (M)   N numbers (N)
    n line feed and carriage return   w other white space   . everything else   ? not in Unicode 14

The table is data, written by docs/write_character_classes.py from Unicode 14. It is not asked of `unicodedata` at run
time, because that differs between Python versions and ids must not.
"""

from __future__ import annotations

import re
from bisect import bisect_right

UNKNOWN = "?"
RUNS = """\
.9wnw2n.18w.15N10.7A26.6a26.10w.26w.9o.7N2.a.3No.N3.A23.A7a24.a8AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaA
a2AaAaAaAaAaAaAaAa2AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaA2aAaAa3A2aAaA2aA3a2A4aA2aA3a3A2aA2aAaAaA2aAa2AaA2aA3a
AaA2a2oAa3o4A2aA2aA2aAaAaAaAaAaAaAaAa2AaAaAaAaAaAaAaAaAa2A2aAaA3aAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa
AaAa7A2aA2a2AaA4aAaAaAaAa69oa27o18.4o12.14o5.7o.o.17c112AaAao.Aa?2oa3.A?4.2A.A3?A?A2aA17?A9a35Aa2A3a3AaAaAaAaAaAaAaAaAa
AaAaAa5Aa.AaA2a2A51a48AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa.c7AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaA2aAaA
aAaAaAaAa2AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa?A38?2o.6a41.
2?2.3?c45.c.c2.c2.c?8o27?4o4.2?11.16c11.5o43c21N10.4o2co99.oc7.2c6o2c2.c4o2N10o3.2o.14?.oco30c27?2o89c11o?14N10o33c9o2.
4o?2c.2o22c4oc9oc3oc5?2.15?o25c3?2.?o11?5o24.o6?.2?6c8o42c24.c33o54c3oc18oc7o10c2.2N10.o16c3?o8?2o2?2o22?o7?o?3o4?2coc7
?2c2?2c3o?8c?4o2?o3c2?2N10o2.2N6.2o.c?2c3?o6?4o2?2o22?o7?o2?o2?o2?2c?c5?4c2?2c3?3c?7o4?o?7N10c2o3c.?10c3?o9?o3?o22?o7?o
2?o5?2coc8?c3?c3?2o?15o2c2?2N10.2?7oc6?c3?o8?2o2?2o22?o7?o2?o5?2coc7?2c2?2c3?7c3?4o2?o3c2?2N10.oN6?10co?o6?3o3?o4?3o2?o
?o2?3o2?3o3?3o12?4c5?3c3?c4?2o?6c?14N13.8?5c5o8?o3?o23?o16?2coc7?c3?c4?7c2?o3?2o?2o2c2?2N10?7.N7.oc3.o8?o3?o23?o10?o5?2
coc7?c3?c4?7c2?6o2?o2c2?2N10?o2?13c4o9?o3?o41c2oc7?c3?c4o.?4o3cN7o3c2?2N19.o6?c3?o18?3o24?o9?o?2o7?3c?4c6?c?c8?6N10?2c2
.?12o48co2c7?4.o7c8.N10.2?37o2?o?o5?o24?o?o10co2c9o?2o5?o?c6?2N10?2o4?32o.23c2.6N20.c.c.c.4c2o8?o36?4c20.c2o5c11?c36?.8
c.6?.13?37o43c20oN10.6o6c4o4c3oc3o2c7o3c4o13c12ocN10c4.2A38?A?5A?2a43.oa3o329?o4?2o7?o?o4?2o41?o4?2o33?o4?2o7?o?o4?2o15
?o57?o4?2o67?2c3.9N20?3o16.10?6A86?2a6?2.o620.2o17wo26.2?3o75.3N3o8?7o18c4?9o19c3.2?9o18c2?12o13?o3?c2?12o52c32.3o.4oc?
2N10?6N10?6.11c3.cN10?6o89?7o5c2o34co?5o70?10o31?c12?4c12?4.?3.2N10o30?2o5?11o44?4o26?6N11?3.34o23c5?2.2o53c10?c29?2cN1
0?6N10?6.7o.6?2c31?49c5o47c17o8?3N10.17c9.11?c3o30c13o2N10o44c14?8.4o36c20?3.5N10?3o3N10o36.2a9?7A43?2A3.8?8c3.c21o4co6
co2c3o?5a44o63a13oa34o37c64AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa
AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa9AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa
AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa9A8a6?2A6?2a8A8a8A8a6?2A6?2a8?A?A?A?Aa8A8a14?2a8A8a8A8a8A8a5?a2A5.a.3a3?a2A5.3a4?
2a2A4?.3a8A5.3?2a3?a2A5.2?w11.29w2.5w.47w.5?.10No?2N6.5oN10.5?o13?3.33?15c33?15.2A.4A.2aA3a2A3a.A.3A5.6A.A.A.A4.aA4ao4a
.2a2A2.5Aa4.4a.N51AaN5.2?4.663?25.11?21N60.78N22.630N30.992?2.32?.105A48a48AaA3a2AaAaAaA4aAa2Aa6o2A3aAaAaAaAaAaAaAaAaAa
AaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAa2.6AaAac3Aa?5.4N.2a38?a?5a?2o56?7o.?14c
o23?9o7?o7?o7?o7?o7?o7?o7?o7?c32.47o.46?34.26?.89?12.214?26.12?4w.4o2N.25N9c6.o5.2N3o2.3?o86?2c2.2o3.o90.o4?5o43?o94?.2
N4.10o32.36?12o16.31?N10.30N8.N15.32N10.39N15.320o6592.64o22157?3.55?9o46.2o269.3o16N10o2?20AaAaAaAaAaAaAaAaAaAaAaAaAaA
aAaAaAaAaAaAaAaAaAaoc4.c10.oAaAaAaAaAaAaAaAaAaAaAaAaAaAao2c2o70N10c2.6?8.23o9.2AaAaAaAaAaAaAa3AaAaAaAaAaAaAaAaAaAaAaAaA
aAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaoa8AaAaA2aAaAaAaAao.2AaAaoAaAa3AaAaAaAaAaAaAaAaAaAaA5aA5aAaAaAaAaAaAaAaA4aAa?5Aa?a
?aAaAa?24o3Aao3ao7co3co4co23c5.4c?3N6.4?6o52.4?8c2o50c18?8.2N10?6c18o6.3o.o2cN10o28c8.2o23c13?11.o29?3c4o47c14.13?oN10?
4.2o5co10N10o5?o41c14?9o3co8c2?2N10?2.4o23.3oc3o50coc3o2c2o5c2oco?24o3.2o11c5.2o3c2?10o6?2o6?2o6?9o7?o7?a43.o4a9o.2?4a8
0o35c8.c2?2N10?6o11172?12o23?4o49?4.8448o366?2o106?38a7?12a5?5oco10.o13?o5?o?o2?o2?o108.17?16o363.18o64?2o54?7.?32o12.4
c16.10?6c16.35?.19?.4?4o5?o135?2.?.15N10.7A26.6a26.11o89?3o6?2o6?2o6?2o3?3.7?.7?10.5?2o12?o26?o19?o2?o15?2o14?34o123?5.
3?4N45?3.9N57.17N2.3?.13?3.?47.45c?130o29?3o49?15cN27?4o32N4?9o20No8N?5o38c5?5o30?.o36?4o8.N5?42A40a40o78?2N10?6A36?4a3
6?4o40?8o52?11.A11?A15?A7?A2?a11?a15?a7?a2?67o311?9o22?10o8?24o6?o42?o9?69o6?2o?o44?o2?3o?2o23?.N8o23.2N7o31?8N9?48o19?
o2?5N5o22N6?3.o26?5.?64o56?4N2o2N16?2N46oc3?c2?5c4o4?o3?o29?2c3?4cN9?7.9?7o29N2.o29N3?32o8.o28c2?4N5.7?9o54?3.7o22?2N8o
19?5N8o18?7.4?12N7?80o73?55A51?13a51?7N6o36c4?8N10?294N31?o42?c2.?2o2?78o29N10o?8o22c11N4.5?22o18c4.4?38o21N7?20o23?9c3
o53c15.7?4N30co2c2o?9c4o45c11.7c?10.?2o25?7N10?6c3o36c14?N10.4oc2o?8o35c.2o?9c3o48c14o4.4c4.c2N10o.o.3?N20?11o18?o25c12
.6c?65o7?o?o4?o15?o10.?6o47c12?5N10?6c4?o8?2o2?2o22?o7?o2?o5?c2oc7?2c2?2c3?2o?6c?5o5c2?2c7?3c5?139o53c18o4.5N10.2?.co3?
30o48c20o2.o?8N10?166o47c7?2c9.23o4c2?34o48c17.3o?11N10?6.13?19o43c13o.?6N10?54o27?2c15?4N12.4o7?185o44c15.?100A32a32N1
9?12o8?2o?2o8?o2?o24c6?c2?2c4ococ2.3?9N10?70o8?2o39c7?2c7o.oc?27oc10o40c7oc4.8c?8oc11o46c16.3o.5?13o73?263o9?o37c8?c8o.
5?10N29?3.2o30?2c22?c14?73o7?o2?o38c6?3c?c2?c7oc?8N10?6o6?o2?o32c5?c2?c5o?7N10?310o19c4.2?183o?15N21.29?13.o922?102N111
?.5?11o196?2636o97.2?13o1071?.9?4039o583?8633o569?7o31?N10?4.2o79?N10?6o30?2c5.?10o48c7.9o4.2?10N10?N7?o21?5o19?688A32a
32N23.4?101o75?4coc55?7c4o13?64o2.oc?11c2?14o6136?8o1238?42o9?8935o4?o7?o2?o291?45o3?17o4?8o396?2308o107?5o13?3o9?7o10?
2.c2.5?4700c46?2c23?9.116?60.246?10.39?2.60c5.3c6.8c8.2c7.30c4.61?21.66c3.?154N20?12.87?9N25?135A26a26A26a7?a18A26a26A?
A2?2A?2A2?2A4?A8a4?a?a7?a11A26a26A2?A4?2A8?A7?a26A2?A4?A5?A?3A7?a26A26a26A26a26A26a26A26a26A26a26A26a28?2A25.a25.a6A25.
a25.a6A25.a25.a6A25.a25.a6A25.a25.a6Aa?2N50.512c55.4c50.8c.14c.7?15c5?c15?1104a10oa20?225c7?c17?2c7?c2?c5?213o45?3c7o7?
2N10?4o.?320o30c?17o44c4N10?5.?1248o7?o4?o2?o15?o197?2N9c7?41A34a34c7o?4N10?4.2?785N59.N3.N4?76N45.N15?194o4?o27?o2?o?2
o?o10?o4?o?o?6o?4o?o?o?o3?o2?o?2o?o?o?o?o?o2?o?2o4?o7?o4?o4?o?o10?o17?5o3?o5?o17?52.2?270.44?4.100?12.15?2.15?.15?.37?1
0N13.161?56.29?13.44?4.9?7.2?14.6?154.984?5.16?3.13?3.116?12.89?7.12?4.?15.12?4.56?8.10?6.40?8.30?2.2?78.340?12.14?2.5?
3.5?3.7?9.29?3.11?5.6?10.10?6.8?8.7?9.147?.55?37N10?1030o42720?32o4153?7o222?2o5762?14o7473?3103o542?1506o4939?715958.?
30.96?128c240?65040.65534?2.65534?2
"""


class CharacterClasses(dict[int, str]):
    """Code point -> class letter for `str.translate`, filled as characters are met. `own` replaces single classes."""

    def __init__(self, own: dict[int, str]) -> None:
        super().__init__(own)
        self._starts: list[int] = []
        self._letters: list[str] = []

    def __missing__(self, code: int) -> str:
        if not self._starts:
            self._starts, self._letters = _read_runs()
        letter = self[code] = self._letters[bisect_right(self._starts, code) - 1]
        return letter


def _read_runs() -> tuple[list[int], list[str]]:
    starts, letters, start = [], [], 0
    for letter, length in re.findall(r"(\D)(\d*)", RUNS.replace("\n", "")):
        starts.append(start)
        letters.append(letter)
        start += int(length or 1)
    return starts, letters
