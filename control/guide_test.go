package control_test

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/volanttest"
)

var (
	guideLine = regexp.MustCompile(`^(?:([A-Z]+)=\$\()?call (.*?)(?: \| jq -r \.(\w+)\))? # (\d+)$`)
	guideWord = regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`)
)

// The examples of docs/guide/api.md do what they say. This reads the few forms of curl that stand there.
func TestTheGuidesExamplesWork(t *testing.T) {
	b, err := os.ReadFile("../docs/guide/api.md")
	if err != nil {
		t.Fatal(err)
	}
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		vars := map[string]string{"API": "/v1"}
		run, inside := 0, false
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "```"):
				inside = line == "```sh"
			case !inside || strings.HasPrefix(line, "API=") || strings.HasPrefix(line, "call() {"):
			case line == "sleep 2":
				time.Sleep(2 * time.Second)
			default:
				m := guideLine.FindStringSubmatch(line)
				if m == nil {
					t.Fatalf("this example has a form that is not known: %s", line)
				}
				code, body := curl(p, strings.ReplaceAll(m[2], "IMAGE", string(volanttest.Image)), vars)
				if want, _ := strconv.Atoi(m[4]); code != want {
					t.Errorf("%s: %d %s", line, code, body)
				}
				var out map[string]any
				if m[1] != "" && json.Unmarshal(body, &out) == nil {
					vars[m[1]], _ = out[m[3]].(string)
				}
				run++
			}
		}
		if run < 10 {
			t.Errorf("%d examples were run, want all that stand there", run)
		}
	})
}

func curl(p *volanttest.Platform, args string, vars map[string]string) (int, []byte) {
	method, url, body := "GET", "", ""
	header := map[string]string{"Authorization": "Bearer " + p.Token()}
	words := guideWord.FindAllString(args, -1)
	for i := 0; i < len(words); i++ {
		next := func() string {
			i++
			return expand(words[i], vars)
		}
		switch words[i] {
		case "-X":
			method = next()
		case "-d":
			body = next()
		case "-H":
			k, v, _ := strings.Cut(next(), ": ")
			header[k] = v
		default:
			url = expand(words[i], vars)
		}
	}
	req := httptest.NewRequest(method, url, strings.NewReader(body))
	for k, v := range header {
		req.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	p.Handler().ServeHTTP(rec, req)
	return rec.Code, rec.Body.Bytes()
}

// expand takes the quotes of a word off, and puts variables in where the shell would.
func expand(word string, vars map[string]string) string {
	if strings.HasPrefix(word, "'") {
		return strings.Trim(word, "'")
	}
	return os.Expand(strings.Trim(word, `"`), func(name string) string { return vars[name] })
}
