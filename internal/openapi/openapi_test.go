package openapi_test

import (
	"bytes"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/openapi"
)

func TestTheDocumentIsFresh(t *testing.T) {
	doc, err := openapi.Generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(doc, api.OpenAPI) {
		t.Error("api/openapi.json is not what the routes and types say now: run `go generate ./api`")
	}
}

func TestTheDocumentIsValid(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEveryRouteSaysWhatItIs(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range (*control.Server)(nil).Routes() {
		at := r.Method + " " + r.Path
		if seen[at] {
			t.Errorf("%s is there twice", at)
		}
		seen[at] = true
		if r.Summary == "" || r.Action == "" || r.Answer.Status == 0 {
			t.Errorf("%s lacks a summary, an action or a status: %+v", at, r)
		}
		if r.Answer.Body != nil && r.Answer.Text {
			t.Errorf("%s answers both JSON and text", at)
		}
		for _, p := range r.Params {
			if p.Text == "" {
				t.Errorf("%s: parameter %s has no meaning", at, p.Name)
			}
		}
	}
	if len(seen) == 0 {
		t.Error("there are no routes")
	}
}
