package main

import (
	"strings"
	"testing"
)

func TestLinesOfSecrets(t *testing.T) {
	got, err := readAssignments(strings.NewReader("# comment\n\nexport A=1\nB = \"two words\"\nC='x=y'\nD=\nE=\"\"\"line 1\nline 2\"\"\"\nF=\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"A": "1", "B": "two words", "C": "x=y", "D": "", "E": "line 1\nline 2", "F": `"`}
	if len(got) != len(want) {
		t.Errorf("got %d secrets, want %d", len(got), len(want))
	}
	for k, v := range want {
		if got[k] == nil || *got[k] != v {
			t.Errorf("%s is %v, want %q", k, got[k], v)
		}
	}
	for _, bad := range []string{"", "A", "=x", "A=\"\"\"never ends\n", "# only a comment\n"} {
		if _, err := readAssignments(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestAssignmentsOfArguments(t *testing.T) {
	got, err := assignments([]string{"A=x=y", "B=-"}, strings.NewReader("from input\n"))
	if err != nil || *got["A"] != "x=y" || *got["B"] != "from input" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range [][]string{{"A"}, {"=x"}, {"A=1", "A=2"}, {"A=-", "B=-"}} {
		if _, err := assignments(bad, strings.NewReader("")); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzLinesOfSecrets(f *testing.F) {
	f.Add("A=1\nB=\"x\"")
	f.Add("A=\"\"\"\n\"\"\"")
	f.Add("A=\"")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := readAssignments(strings.NewReader(in))
		if err == nil && len(got) == 0 {
			t.Error("no secret and no error")
		}
		for name := range got {
			if name == "" || strings.Contains(name, "=") {
				t.Errorf("name %q", name)
			}
		}
	})
}
