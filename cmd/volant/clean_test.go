package main

import (
	"bytes"
	"testing"

	"github.com/volant-edge/volant/api"
)

func TestCleanLeavesNothingForTheTerminalToObey(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode, 日本, 👩\u200d🚀":       "plain, ünïcode, 日本, 👩\u200d🚀",
		"\x1b[1;31mred\x1b[0m":               "red",
		"\x1b]0;title\a":                     `\x1b]0;title\x07`,
		"\x1b[2J\x1b[Hspoof":                 `\x1b[2J\x1b[Hspoof`,
		"a\rb\nc\td\x7f":                     `a\x0db\x0ac\x09d\x7f`,
		"\u009b31m c1, \u202e right to left": `\u009b31m c1, \u202e right to left`,
		"broken \xff utf-8":                  "broken \ufffd utf-8",
	} {
		if got := clean(in, ""); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m \x1b]0;t\a")
	f.Add("\x1b[\x1b[0m2J")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range clean(s, "") {
			if odd(r) {
				t.Fatalf("%q leaves %q", s, r)
			}
		}
	})
}

func TestTablesKeepOneLineForEachRow(t *testing.T) {
	var out bytes.Buffer
	machineTable(&out, []api.Machine{{ID: "1", Reason: "boot: \x1b[2J\nMACHINE 2 is fine"}})
	if got := bytes.Count(out.Bytes(), []byte("\n")); got != 2 || bytes.ContainsRune(out.Bytes(), '\x1b') {
		t.Errorf("%d lines: %q", got, out.String())
	}
}
