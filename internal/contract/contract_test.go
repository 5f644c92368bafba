package contract_test

import (
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/contract"
	"github.com/volant-edge/volant/internal/openapi"
)

// reach is how many of Fly's operations we answer at least.
const reach = 50

func TestOurDocumentHasWhatFlysHas(t *testing.T) {
	fly, err := contract.LoadFly(os.Getenv(contract.FlyDocument))
	if err != nil {
		t.Fatal(err)
	}
	if fly == nil {
		t.Skip(contract.FlyDocument + " does not name a copy of Fly's document")
	}
	doc, err := openapi.Generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	rep, err := fly.Compare((*control.Server)(nil).Routes(), doc)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("answered: %d of Fly's %d operations", len(rep.Answered), rep.Operations)
	for _, v := range rep.Violations {
		t.Error(v)
	}
	for d := range contract.Differences {
		if !rep.Used[d] {
			t.Errorf("%s is a known difference, but there is none", d)
		}
	}
	listed := unanswered(t)
	if diff := cmp.Diff(listed, rep.Missing); diff != "" {
		t.Errorf("docs/guide/api.md lists what is not answered (-listed +so):\n%s", diff)
	}
	if len(rep.Answered) < reach {
		t.Errorf("%d operations are answered, want at least %d", len(rep.Answered), reach)
	}
}

// unanswered are the operations that the guide lists as not answered.
func unanswered(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../../docs/guide/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`").FindAllStringSubmatch(section(t, string(b), "## What is not answered"), -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return out
}

// section is a part of a guide.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, after, ok := strings.Cut(text, heading+"\n")
	if !ok {
		t.Fatalf("the guide has no part %q", heading)
	}
	part, _, _ := strings.Cut(after, "\n## ")
	return part
}

func TestTheGuideListsWhatIsNotAnsweredAndAllWords(t *testing.T) {
	listed := unanswered(t)
	if len(listed) == 0 {
		t.Error("the guide lists nothing that is not answered")
	}
	nameless := func(path string) string { return regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "{}") }
	for _, r := range (*control.Server)(nil).Routes() {
		for _, l := range listed {
			if r.Served() && nameless(l) == nameless(r.Method+" "+strings.TrimPrefix(r.Path, "/v1")) {
				t.Errorf("the guide says that %s is not answered, but it is", l)
			}
		}
	}
	b, err := os.ReadFile("../../docs/guide/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| \\d").FindAllStringSubmatch(section(t, string(b), "## Errors"), -1) {
		words = append(words, m[1])
	}
	slices.Sort(words)
	if diff := cmp.Diff(control.Words(), words); diff != "" {
		t.Errorf("the guide's words of errors (-API +guide):\n%s", diff)
	}
}

func TestWhatDoesNotKeepToTheDocumentIsTold(t *testing.T) {
	c, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		contract.Exchange
		want string // in the violation; empty: none
	}{
		{"in order", contract.Exchange{Method: "GET", Status: 200, Type: "application/json", Body: []byte(`{"status":"ok"}`)}, ""},
		{"another field", contract.Exchange{Method: "GET", Status: 200, Type: "application/json", Body: []byte(`{"status":"ok","x":1}`)}, "additional properties"},
		{"a missing field", contract.Exchange{Method: "GET", Status: 200, Type: "application/json", Body: []byte(`{}`)}, "status"},
		{"another type", contract.Exchange{Method: "GET", Status: 200, Type: "application/json", Body: []byte(`{"status":1}`)}, "number"},
		{"another media type", contract.Exchange{Method: "GET", Status: 200, Type: "text/html", Body: []byte(`{"status":"ok"}`)}, "text/html"},
		{"another status", contract.Exchange{Method: "GET", Status: 201, Type: "application/json", Body: []byte(`{"status":"ok"}`)}, "says 200"},
		{"an error", contract.Exchange{Method: "GET", Status: 404, Type: "application/json", Body: []byte(`{"error":"x","status":"not_found"}`)}, ""},
		{"an unknown word", contract.Exchange{Method: "GET", Status: 404, Type: "application/json", Body: []byte(`{"error":"x","status":"lost"}`)}, "lost"},
		{"an error in another form", contract.Exchange{Method: "GET", Status: 404, Type: "text/plain", Body: []byte(`404`)}, "form"},
	} {
		x.URL = &url.URL{Path: "/v1/health"}
		got := strings.Join(c.Check(x.Exchange), "; ")
		if x.want == "" && got != "" || !strings.Contains(got, x.want) {
			t.Errorf("%s: got %q, want %q in it", x.name, got, x.want)
		}
	}
	wrong := contract.Exchange{
		Method: "POST", URL: &url.URL{Path: "/v1/apps"}, Ask: []byte(`{"name":1}`), Status: 201, Type: "application/json", Body: []byte(`{"id":"a","created_at":1}`),
	}
	if got := strings.Join(c.Check(wrong), "; "); !strings.Contains(got, "request") {
		t.Errorf("a wrong request that was granted: got %q", got)
	}
}
