package contract

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/volant-edge/volant/control"
)

// FlyDocument is the variable that names a copy of the OpenAPI document of Fly's Machines API.
const FlyDocument = "VOLANT_MACHINES_OPENAPI"

// Fly is Fly's document.
type Fly struct {
	doc *openapi3.T
	ops map[string]*openapi3.Operation // by "GET /apps/{}"
	at  map[string]string              // "GET /apps/{}" → as the document writes it
}

// LoadFly reads Fly's document; an empty name gives nil.
func LoadFly(file string) (*Fly, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FlyDocument, err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FlyDocument, err)
	}
	f := &Fly{doc: doc, ops: map[string]*openapi3.Operation{}, at: map[string]string{}}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			key := method + " " + nameless(path)
			f.ops[key], f.at[key] = op, method+" "+path
		}
	}
	// Fly's document knows two words for errors; a client that compares with these finds ours unknown.
	if s := doc.Components.Schemas["main.statusCode"]; s != nil {
		s.Value.Enum = nil
	}
	// It lists the single bits of a mask, whose sums are as good.
	if s := doc.Components.Schemas["resset.Action"]; s != nil {
		s.Value.Enum = nil
	}
	for name, s := range doc.Components.Schemas {
		for field, v := range s.Value.Properties {
			if Differences[name+"."+field] != "" && v.Ref == "" { // known to be otherwise here
				v.Value.Type, v.Value.Items = nil, nil
			}
		}
	}
	return f, nil
}

var pathName = regexp.MustCompile(`\{[^}]*\}`)

// nameless is a path without the names of its parameters.
func nameless(path string) string { return pathName.ReplaceAllString(path, "{}") }

// flyKey finds a route among Fly's.
func flyKey(r control.Route) string {
	return r.Method + " " + nameless(strings.TrimPrefix(r.Path, "/v1"))
}

// Check returns what a response violates of Fly's document.
func (f *Fly) Check(r control.Route, x Exchange) []string {
	key := flyKey(r)
	op := f.ops[key]
	if op == nil || strings.HasPrefix(x.Type, "application/x-ndjson") {
		return nil
	}
	res := op.Responses.Value(strconv.Itoa(x.Status))
	if res == nil {
		if x.Status >= 300 || Differences[key+" "+strconv.Itoa(x.Status)] != "" {
			return nil
		}
		return []string{fmt.Sprintf("Fly's document has no status %d", x.Status)}
	}
	media := res.Value.Content.Get("application/json")
	if media == nil || media.Schema == nil {
		return nil // it leaves the body open
	}
	var v any
	if err := json.Unmarshal(x.Body, &v); err != nil {
		return []string{"Fly's document has JSON here: " + err.Error()}
	}
	if err := media.Schema.Value.VisitJSON(v, openapi3.MultiErrors()); err != nil {
		return []string{"Fly's document: " + strings.Join(strings.Fields(err.Error()), " ")}
	}
	return nil
}

// Report compares our document with Fly's.
type Report struct {
	Operations int      // of Fly's
	Answered   []string // of them, as Fly writes them
	Missing    []string // not answered
	Violations []string
	Used       map[string]bool // known differences that came up
}

// Compare compares a table of routes and its document with Fly's.
func (f *Fly) Compare(routes []control.Route, doc []byte) (*Report, error) {
	ours, err := openapi3.NewLoader().LoadFromData(doc)
	if err != nil {
		return nil, err
	}
	rep := &Report{Operations: len(f.ops), Used: map[string]bool{}}
	byKey := map[string]control.Route{}
	for _, r := range routes {
		if r.Served() {
			byKey[flyKey(r)] = r
		}
	}
	for key, theirs := range f.ops {
		r, ok := byKey[key]
		if !ok {
			rep.Missing = append(rep.Missing, f.at[key])
			continue
		}
		rep.Answered = append(rep.Answered, f.at[key])
		d := diff{rep: rep, key: key, seen: map[[2]*openapi3.Schema]bool{}}
		d.operation(theirs, ours.Paths.Value(strings.ReplaceAll(r.Path, "...}", "}")).GetOperation(r.Method))
	}
	slices.Sort(rep.Answered)
	slices.Sort(rep.Missing)
	slices.Sort(rep.Violations)
	rep.Violations = slices.Compact(rep.Violations)
	return rep, nil
}

// diff compares one operation.
type diff struct {
	rep  *Report
	key  string
	seen map[[2]*openapi3.Schema]bool
}

func (d *diff) lacks(where, what string) {
	if Differences[where] != "" {
		d.rep.Used[where] = true
		return
	}
	d.rep.Violations = append(d.rep.Violations, fmt.Sprintf("%s: %s", where, what))
}

func (d *diff) operation(theirs, ours *openapi3.Operation) {
	for _, p := range theirs.Parameters {
		if p.Value.In == "path" {
			continue
		}
		where := d.key + " " + p.Value.Name
		q := ours.Parameters.GetByInAndName(p.Value.In, p.Value.Name)
		if q == nil {
			d.lacks(where, p.Value.In+" parameter is missing")
		} else if ours := q.Schema; p.Value.Schema != nil {
			if ours.Value.Type.Is("array") { // it may be given several times too
				ours = ours.Value.Items
			}
			d.schema(where, p.Value.Schema, ours)
		}
	}
	if theirs.RequestBody != nil {
		d.body(d.key+" request", theirs.RequestBody.Value.Content, func() openapi3.Content {
			if ours.RequestBody == nil {
				return nil
			}
			return ours.RequestBody.Value.Content
		}())
	}
	for code, res := range theirs.Responses.Map() {
		if code[0] != '2' {
			continue // errors have one form
		}
		where := d.key + " " + code
		our := ours.Responses.Value(code)
		if our == nil {
			d.lacks(where, "this status is not answered")
			continue
		}
		d.body(where, res.Value.Content, our.Value.Content)
	}
}

func (d *diff) body(where string, theirs, ours openapi3.Content) {
	for _, kind := range []string{"application/json", "text/plain"} {
		t := theirs[kind]
		if t == nil || t.Schema == nil {
			continue
		}
		o := ours[kind]
		if o == nil || o.Schema == nil {
			d.lacks(where, "has no body of type "+kind)
			continue
		}
		d.schema(where, t.Schema, o.Schema)
	}
}

// schema compares types and, of objects, all their fields.
func (d *diff) schema(where string, theirs, ours *openapi3.SchemaRef) {
	if all := theirs.Value.AllOf; theirs.Ref == "" && len(all) == 1 {
		theirs = all[0]
	}
	if theirs.Ref != "" {
		where = strings.TrimPrefix(theirs.Ref, "#/components/schemas/")
	}
	t, o := whole(theirs.Value), whole(ours.Value)
	if t == nil || o == nil || d.seen[[2]*openapi3.Schema{t, o}] {
		return
	}
	d.seen[[2]*openapi3.Schema{t, o}] = true
	if Differences[where] != "" {
		d.rep.Used[where] = true
		return
	}
	if t.Type != nil && o.Type != nil && !slices.ContainsFunc(t.Type.Slice(), o.Type.Includes) {
		d.lacks(where, fmt.Sprintf("is %v, Fly has %v", o.Type.Slice(), t.Type.Slice()))
		return
	}
	if t.Items != nil && o.Items != nil {
		d.schema(where+"[]", t.Items, o.Items)
	}
	if more := t.AdditionalProperties.Schema; more != nil {
		if o.AdditionalProperties.Schema == nil {
			if o.AdditionalProperties.Has == nil {
				d.lacks(where, "is no map")
			}
		} else {
			d.schema(where+"{}", more, o.AdditionalProperties.Schema)
		}
	}
	for name, p := range t.Properties {
		q := o.Properties[name]
		if q == nil {
			d.lacks(where+"."+name, "field is missing")
			continue
		}
		d.schema(where+"."+name, p, q)
	}
}

// whole looks through an allOf of one.
func whole(s *openapi3.Schema) *openapi3.Schema {
	for s != nil && len(s.AllOf) == 1 && len(s.Properties) == 0 {
		s = s.AllOf[0].Value
	}
	return s
}
