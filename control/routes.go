package control

import (
	"net/http"
	"regexp"
	"strings"
)

// Route is one operation of the API as data. The mux, rate limits, the API's OpenAPI document and its tests
// are made from the table of them, so that none can be forgotten.
//
// To add one: write its handler, put its line into the list of its area (routes_*.go), and run
// `go generate ./api`. What travels gets a type with doc comments in package api: comments of types and
// fields are the document's descriptions. A line reads
//
//	at("POST /v1/apps/{app}/machines", scopeDeploy, "machine.create", s.createMachine,
//		"Create a machine", api.CreateMachine{}, ok(api.Machine{}), query("name", "string", "what it does"))
//
// that is: method and path, scope (scopeNone: no token), action (what rate limits count by), handler,
// summary, a value of the request body's type (nil: no body), the answer, and query or header parameters.
// Path parameters have their meaning in pathParams. Errors need no mention: all have the form api.Error.
type Route struct {
	Method, Path string
	Scope        string // read, deploy, admin; empty: no token is needed
	Action       string // for rate limits, such as "machine.start"
	Summary      string
	In           any // a value of the JSON body's type; nil: none; Bytes: any bytes
	Answer       Answer
	Params       []Param
	Area         string // heading under which the document shows it

	handle handler
}

// Answer is what a route answers when all went well.
type Answer struct {
	Status int
	Body   any  // a value of the JSON's type; nil: empty
	Stream any  // a value of the type of each line, where the answer is or can be application/x-ndjson
	Text   bool // the body is text/plain
}

// Served says whether the route does something.
func (r *Route) Served() bool { return r.Answer.Status != http.StatusNotImplemented }

// Param is a parameter of a path, query or header.
type Param struct {
	Name, In string // In is path, query or header
	Type     string // string, integer, boolean, date-time
	Required bool
	Many     bool // may be given several times
	Text     string
}

// Bytes stands for a body that is no JSON.
type Bytes struct{}

const scopeNone scope = ""

func at(methodPath string, need scope, action string, h handler, summary string, in any, out Answer, params ...Param) Route {
	method, path, _ := strings.Cut(methodPath, " ")
	return Route{
		Method: method, Path: path, Scope: string(need), Action: action, Summary: summary,
		In: in, Answer: out, Params: append(inPath(path), params...), handle: h,
	}
}

func ok(body any) Answer      { return Answer{Status: http.StatusOK, Body: body} }
func created(body any) Answer { return Answer{Status: http.StatusCreated, Body: body} }
func empty(status int) Answer { return Answer{Status: status} }
func stream(line any) Answer  { return Answer{Status: http.StatusOK, Stream: line} }

// unserved is of an operation that clients know and this server refuses, for the time being, with a remedy.
func unserved() Answer { return Answer{Status: http.StatusNotImplemented} }

func text() Answer { return Answer{Status: http.StatusOK, Text: true} }

func (a Answer) orStream(line any) Answer { a.Stream = line; return a }

// query is an optional parameter of the query.
func query(name, typ, text string) Param {
	return Param{Name: name, In: "query", Type: typ, Text: text}
}

func header(name, typ, text string) Param {
	return Param{Name: name, In: "header", Type: typ, Text: text}
}

func (p Param) required() Param { p.Required = true; return p }
func (p Param) many() Param     { p.Many = true; return p }

// pathParams says what the parameters of paths mean.
var pathParams = map[string]string{
	"app":      "name or ID of the app",
	"id":       "ID of the machine",
	"version":  "number of the release",
	"key":      "name of the metadata",
	"digest":   "OCI digest: sha256: and 64 hex digits",
	"name":     "name of the secret or key",
	"ip":       "address of the app",
	"org":      "slug of the organization",
	"hostname": "host name; a \"*\" is written as %2A",
	"token":    "ID of the token",
	"node":     "ID or name of the server",
	"region":   "code of the region",
	"what":     "name of an app, ID of a machine, or ID of a connection",
}

var pathParam = regexp.MustCompile(`\{([a-z_]+)(?:\.\.\.)?\}`)

func inPath(path string) []Param {
	var out []Param
	for _, m := range pathParam.FindAllStringSubmatch(path, -1) {
		out = append(out, Param{Name: m[1], In: "path", Type: "string", Required: true, Text: pathParams[m[1]]})
	}
	return out
}

// Routes is the whole API. The handlers of a nil server's are not to be called.
func (s *Server) Routes() []Route {
	var all []Route
	for _, area := range []struct {
		name   string
		routes []Route
	}{
		{"apps", s.appRoutes()},
		{"releases", s.releaseRoutes()},
		{"machines", s.machineRoutes()},
		{"accounts", append(s.accountRoutes(), s.secretKeyRoutes()...)},
		{"platform", append(s.platformRoutes(), s.nodeRoutes()...)},
	} {
		for _, r := range area.routes {
			r.Area = area.name
			all = append(all, r)
		}
	}
	return all
}
