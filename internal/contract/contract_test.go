package contract_test

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/contract"
	"github.com/volant-edge/volant/internal/openapi"
)

// reach is how many of Fly's operations we answer at least.
const reach = 1

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
	if len(rep.Answered) < reach {
		t.Errorf("%d operations are answered, want at least %d", len(rep.Answered), reach)
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
