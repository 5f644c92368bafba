// Package contract checks requests and responses against the API's OpenAPI document and, where a copy of it
// is named, against that of Fly's Machines API. It is for tests.
//
//	test ─► Handler ─► the API
//	           └─► Check: is what went to and fro what the documents say?
//
// # Invariants
//
//   - A request that was answered 2xx is one that the document allows, and so is its response, to the field:
//     an undocumented field of a response is a violation.
//   - Every other answer has the form api.Error with a word of Words.
//
// # Sources
//
// JSON Schema 2020-12 by santhosh-tekuri/jsonschema; OpenAPI 3.0 by getkin/kin-openapi.
package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/openapi"
)

// Exchange is a request and its response.
type Exchange struct {
	Method string
	URL    *url.URL
	Ask    []byte // body of the request
	Status int
	Type   string // Content-Type of the response
	Body   []byte
}

// Checker checks exchanges. It may be used by several goroutines.
type Checker struct {
	mux    *http.ServeMux // only to find routes
	routes map[string]control.Route

	mu      sync.Mutex // guards the fields below
	compile *jsonschema.Compiler
	schemas map[string]*jsonschema.Schema
	seen    map[string]bool // exchanges that were in order
	fly     *Fly
}

// New returns a checker of a document made of routes.
func New(routes []control.Route, doc []byte, fly *Fly) (*Checker, error) {
	c := &Checker{
		mux: http.NewServeMux(), routes: map[string]control.Route{}, schemas: map[string]*jsonschema.Schema{},
		compile: jsonschema.NewCompiler(), seen: map[string]bool{}, fly: fly,
	}
	for _, r := range routes {
		c.mux.Handle(r.Method+" "+r.Path, http.NotFoundHandler())
		c.routes[r.Method+" "+r.Path] = r
	}
	for _, strict := range []bool{false, true} {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
		if err != nil {
			return nil, err
		}
		if strict {
			closeObjects(v)
		}
		if err := c.compile.AddResource(document(strict), v); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Load returns a checker of the module that the working directory is in. VOLANT_MACHINES_OPENAPI may name
// a copy of Fly's document.
func Load() (*Checker, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	doc, err := openapi.Generate(root)
	if err != nil {
		return nil, err
	}
	fly, err := LoadFly(os.Getenv(FlyDocument))
	if err != nil {
		return nil, err
	}
	return New((*control.Server)(nil).Routes(), doc, fly)
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = up
	}
}

// closeObjects lets the component schemas have no fields but theirs.
func closeObjects(doc any) {
	components, _ := doc.(map[string]any)["components"].(map[string]any)
	schemas, _ := components["schemas"].(map[string]any)
	for _, s := range schemas {
		if o, ok := s.(map[string]any); ok && o["properties"] != nil {
			o["additionalProperties"] = false
		}
	}
}

func document(strict bool) string {
	if strict {
		return "mem:///strict.json"
	}
	return "mem:///openapi.json"
}

// Check returns what an exchange violates.
func (c *Checker) Check(x Exchange) []string {
	r, found := c.find(x)
	key := fmt.Sprint(x.Method, x.URL, x.Status, x.Type, "\x00", string(x.Ask), "\x00", string(x.Body))
	if len(key) < 64<<10 {
		c.mu.Lock()
		known := c.seen[key]
		if len(c.seen) > 4096 {
			clear(c.seen)
		}
		c.seen[key] = true
		c.mu.Unlock()
		if known {
			return nil
		}
	}
	var bad []string
	if x.Status >= 300 {
		bad = c.failure(x)
	} else if !found {
		bad = []string{"is answered, but the document does not have it"}
	} else {
		bad = append(c.request(r, x), c.response(r, x)...)
	}
	if found && c.fly != nil {
		bad = append(bad, c.fly.Check(r, x)...)
	}
	for i := range bad {
		bad[i] = fmt.Sprintf("%s %s (%d): %s", x.Method, x.URL, x.Status, bad[i])
	}
	return bad
}

func (c *Checker) find(x Exchange) (control.Route, bool) {
	_, pattern := c.mux.Handler(&http.Request{Method: x.Method, URL: x.URL, Host: x.URL.Host})
	r, ok := c.routes[pattern]
	return r, ok && (r.Method == x.Method)
}

func (c *Checker) failure(x Exchange) []string {
	if x.Method == http.MethodHead {
		return nil
	}
	if err := c.json("/components/schemas/Error", x.Body, true); err != nil {
		return []string{"the error has another form: " + err.Error()}
	}
	var e struct{ Status string }
	if err := json.Unmarshal(x.Body, &e); err != nil || !slices.Contains(control.Words(), e.Status) {
		return []string{fmt.Sprintf("the status word %q is none that is documented", e.Status)}
	}
	return nil
}

// request checks what was asked and granted.
func (c *Checker) request(r control.Route, x Exchange) []string {
	var bad []string
	for _, p := range r.Params {
		values := x.URL.Query()[p.Name]
		if p.In != "query" {
			continue
		}
		if p.Required && len(values) == 0 {
			bad = append(bad, fmt.Sprintf("parameter %s is required, but it was answered without", p.Name))
		}
		for _, v := range values {
			if err := parameter(p, v); err != nil {
				bad = append(bad, fmt.Sprintf("parameter %s=%q: %v", p.Name, v, err))
			}
		}
	}
	if _, raw := r.In.(control.Bytes); r.In != nil && !raw && len(bytes.TrimSpace(x.Ask)) > 0 {
		if err := c.json(operation(r)+"/requestBody/content/application~1json/schema", x.Ask, false); err != nil {
			bad = append(bad, "request: "+err.Error())
		}
	}
	return bad
}

func parameter(p control.Param, v string) (err error) {
	switch p.Type {
	case "integer":
		_, err = strconv.ParseInt(v, 10, 64)
	case "boolean":
		_, err = strconv.ParseBool(v)
	}
	return err
}

func operation(r control.Route) string {
	path := strings.ReplaceAll(r.Path, "...}", "}")
	return "/paths/" + strings.ReplaceAll(strings.ReplaceAll(path, "~", "~0"), "/", "~1") + "/" + strings.ToLower(r.Method)
}

func (c *Checker) response(r control.Route, x Exchange) []string {
	if x.Status != r.Answer.Status {
		return []string{fmt.Sprintf("the document says %d", r.Answer.Status)}
	}
	kind, _, _ := strings.Cut(x.Type, ";")
	schema := func(kind string) string {
		return operation(r) + "/responses/" + strconv.Itoa(x.Status) + "/content/" + strings.ReplaceAll(kind, "/", "~1") + "/schema"
	}
	switch {
	case r.Answer.Body == nil && r.Answer.Stream == nil && !r.Answer.Text, x.Status == http.StatusNoContent:
		if len(x.Body) > 0 {
			return []string{"the document says that the answer is empty"}
		}
	case r.Answer.Text && kind == "text/plain":
	case r.Answer.Body != nil && kind == "application/json":
		if err := c.json(schema(kind), x.Body, true); err != nil {
			return []string{"response: " + err.Error()}
		}
	case r.Answer.Stream != nil && kind == "application/x-ndjson":
		for line := range bytes.Lines(x.Body) {
			if err := c.json(schema(kind), line, true); err != nil {
				return []string{"line of the response: " + err.Error()}
			}
		}
	default:
		return []string{fmt.Sprintf("the response is of type %q", x.Type)}
	}
	return nil
}

// json checks a body against the schema at a place of the document.
func (c *Checker) json(at string, body []byte, strict bool) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%q is not JSON: %w", cut(body), err)
	}
	s, err := c.schema(document(strict) + (&url.URL{Fragment: at}).String())
	if err != nil {
		return err
	}
	if err := s.Validate(v); err != nil {
		return fmt.Errorf("%w in %s", err, cut(body))
	}
	return nil
}

func (c *Checker) schema(at string) (*jsonschema.Schema, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.schemas[at]; s != nil {
		return s, nil
	}
	s, err := c.compile.Compile(at)
	if err != nil {
		return nil, err
	}
	c.schemas[at] = s
	return s, nil
}

func cut(b []byte) string {
	if len(b) > 2000 {
		return string(b[:2000]) + "…"
	}
	return string(b)
}
