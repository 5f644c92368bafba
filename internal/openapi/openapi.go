// Package openapi makes the API's OpenAPI 3.1 document out of the table of routes and the types in it.
//
//	control.Routes ─┐
//	Go types        ├─► Build ─► api/openapi.json (embedded, served)
//	their comments ─┘
//
// # Invariants
//
//   - Every word of the document stands in a comment or in the table, so it cannot say what the code does not.
//   - What a response always has is required; of what a request holds nothing is, since clients leave out
//     what has a default.
//   - The same source makes the same bytes.
//
// # Sources
//
// OpenAPI Specification 3.1.0; JSON Schema 2020-12.
//
// # Not here
//
// Whether requests and responses keep to it: package contract.
package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
)

// Build returns the document.
func Build(routes []control.Route, docs *Docs) ([]byte, error) {
	s := &schemas{docs: docs, asked: map[reflect.Type]bool{}, defined: map[string]any{}}
	for _, r := range routes {
		if r.In != nil {
			s.ask(reflect.TypeOf(r.In))
		}
	}
	paths := object{}
	for _, r := range routes {
		path := strings.ReplaceAll(r.Path, "...}", "}")
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path].(object)[strings.ToLower(r.Method)] = s.operation(r)
	}
	failed := s.of(reflect.TypeFor[api.Error]())
	if s.err != nil {
		return nil, s.err
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Volant API", "version": "1",
			"description": "Apps, machines and what serves them. Send `Authorization: Bearer TOKEN`. Every answer that is not 2xx has the form Error; docs/guide/api.md lists its words.",
			"license":     object{"name": "Apache 2.0", "identifier": "Apache-2.0"},
		},
		"servers":  []any{object{"url": "/"}},
		"tags":     tags(routes),
		"paths":    paths,
		"security": []any{object{"token": []string{}}},
		"components": object{
			"schemas":         s.defined,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}},
			"responses": object{"Error": object{
				"description": "What was wrong, a word for programs, and what to do", "content": object{"application/json": object{"schema": failed}},
			}},
		},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	err := enc.Encode(doc)
	return b.Bytes(), err
}

func tags(routes []control.Route) []any {
	var out []any
	seen := map[string]bool{}
	for _, r := range routes {
		if !seen[r.Area] {
			seen[r.Area] = true
			out = append(out, object{"name": r.Area})
		}
	}
	return out
}

func (s *schemas) operation(r control.Route) object {
	o := object{
		"operationId": operationID(r), "tags": []string{r.Area}, "summary": r.Summary,
		"responses": s.responses(r), "x-action": r.Action,
	}
	if params := parameters(r); len(params) > 0 {
		o["parameters"] = params
	}
	if r.Scope == "" {
		o["security"] = []any{}
	} else {
		o["x-scope"] = r.Scope
	}
	switch r.In.(type) {
	case nil:
	case control.Bytes:
		o["requestBody"] = object{"required": true, "content": object{"application/octet-stream": object{}}}
	default:
		o["requestBody"] = object{"content": object{"application/json": object{"schema": s.of(reflect.TypeOf(r.In))}}}
	}
	return o
}

// operationID makes of GET /v1/apps/{app}/machines/{id}/lease: get_apps_app_machines_id_lease.
func operationID(r control.Route) string {
	p := strings.NewReplacer("/", "_", "{", "", "}", "", ".", "_").Replace(strings.TrimPrefix(r.Path, "/v1/"))
	return strings.ToLower(r.Method) + "_" + p
}

func (s *schemas) responses(r control.Route) object {
	content := object{}
	switch a := r.Answer; {
	case a.Body != nil:
		content["application/json"] = object{"schema": s.of(reflect.TypeOf(a.Body))}
	case a.Text:
		content["text/plain"] = object{"schema": object{"type": "string"}}
	}
	if r.Answer.Stream != nil {
		line := s.of(reflect.TypeOf(r.Answer.Stream))
		line["description"] = "one line of the stream: each is a JSON object of this form"
		content["application/x-ndjson"] = object{"schema": line}
	}
	out := object{"default": object{"$ref": "#/components/responses/Error"}}
	if code := r.Answer.Status; code < http.StatusBadRequest {
		res := object{"description": http.StatusText(code)}
		if len(content) > 0 && code != http.StatusNoContent {
			res["content"] = content
		}
		out[fmt.Sprint(code)] = res
	}
	return out
}

func parameters(r control.Route) []any {
	var out []any
	for _, p := range r.Params {
		schema := object{"type": p.Type}
		if p.Type == "date-time" {
			schema = object{"type": "string", "format": "date-time"}
		}
		if p.Many {
			schema = object{"type": "array", "items": schema}
		}
		o := object{"name": p.Name, "in": p.In, "schema": schema}
		if p.Text != "" {
			o["description"] = p.Text
		}
		if p.Required {
			o["required"] = true
		}
		out = append(out, o)
	}
	return out
}
