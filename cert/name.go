package cert

import (
	"strings"

	volant "github.com/volant-edge/volant"
)

const (
	maxName  = 253
	maxLabel = 63
)

// Hostname checks a host name, which may begin with "*.", and returns it in lower case without a final dot.
func Hostname(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	rest := strings.TrimPrefix(name, "*.")
	if rest == "" || len(name) > maxName {
		return "", volant.Invalidf("host name %q: use at most %d letters, digits, '-' and '.'", clip(s), maxName)
	}
	numeric := true
	for label := range strings.SplitSeq(rest, ".") {
		if !plainLabel(label) {
			return "", volant.Invalidf("host name %q: %q is no part of a name: use 1 to %d letters, digits and '-'", clip(s), clip(label), maxLabel).
				WithRemedy("write names beyond ASCII in their xn-- form")
		}
		numeric = strings.Trim(label, "0123456789") == ""
	}
	if numeric {
		return "", volant.Invalidf("host name %q ends in a number: use a name, not an address", clip(s))
	}
	return name, nil
}

func plainLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// below says whether name is domain or lies below it.
func below(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// clip bounds what an error repeats of what it was given.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
