package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean makes text of guests and other users safe for a terminal: colours are taken out, and each other
// character that does not print is shown by its code. A line feed or tab is one of them unless kept.
func clean(s, keep string) string {
	if !strings.ContainsFunc(s, odd) && utf8.ValidString(s) {
		return s
	}
	s = colours.ReplaceAllString(s, "")
	var b strings.Builder
	for _, r := range s {
		switch {
		case !odd(r), strings.ContainsRune(keep, r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// colours are SGR sequences.
var colours = regexp.MustCompile("\x1b\\[[0-9;:]*m")

const joiner = '\u200d' // of emoji

// odd says whether a character could do something else than appear.
func odd(r rune) bool { return !unicode.IsPrint(r) && r != joiner }

// cleaner cleans whole writes, and keeps lines and columns.
type cleaner struct{ w io.Writer }

func (c cleaner) Write(p []byte) (int, error) {
	if _, err := io.WriteString(c.w, clean(string(p), "\n\t")); err != nil {
		return 0, err
	}
	return len(p), nil
}
