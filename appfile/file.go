package appfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// Names are those a config file has if nothing else is said, the first wins.
var Names = []string{"volant.toml", "fly.toml", "fly.json", "fly.yaml"}

// File is what a config file asks for.
type File struct {
	App   string `json:"app,omitempty"`
	Image string `json:"image,omitempty"` // as the file names it
	// Release lacks only the digest of its image.
	Release  api.CreateRelease `json:"release"`
	Warnings []Problem         `json:"warnings,omitempty"`
}

// Configs are those of all process groups, the default one first.
func (f *File) Configs() []*volant.MachineConfig {
	out := []*volant.MachineConfig{&f.Release.Config}
	for i := range f.Release.Others {
		out = append(out, &f.Release.Others[i].Config)
	}
	return out
}

// Options of Parse.
type Options struct {
	// AllowUnsupported turns problems with keys that are not acted on into warnings.
	AllowUnsupported bool
	// HasImage says that the image comes from elsewhere, so that it does not matter how [build] would make one.
	HasImage bool
	// Strict turns warnings into problems.
	Strict bool
	// Region takes the place of primary_region.
	Region volant.Region
	// ReadFile reads what local_path names. Without it such files are problems.
	ReadFile func(path string) ([]byte, error)
}

// Problem is something to tell about a place in a config file.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1, as Column
	Column int    `json:"column"`
	Text   string `json:"text"`
}

func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Error tells all problems of a config file. It is of kind volant.ErrInvalid.
type Error struct {
	Problems []Problem
	Remedy   string // what helps against all of them; may be empty
}

// maxProblems bounds how many problems an error's text has.
const maxProblems = 20

func (e *Error) Error() string {
	var lines []string
	for i, p := range e.Problems {
		if i == maxProblems {
			lines = append(lines, fmt.Sprintf("%s: and %d more problems", p.File, len(e.Problems)-maxProblems))
			break
		}
		lines = append(lines, p.String())
	}
	if e.Remedy != "" {
		lines = append(lines, e.Remedy)
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is find the kind.
func (e *Error) Unwrap() error { return volant.ErrInvalid }

// maxFile bounds a config file. Real ones have a few KiB.
const maxFile = 256 << 10

// Parse reads a config file. Its name is for messages, and its end (.json, .yaml, .yml) tells the notation:
// all else is TOML.
func Parse(name string, b []byte, opt Options) (*File, error) {
	if len(b) > maxFile {
		return nil, volant.Invalidf("%s has %d bytes: the most is %d", name, len(b), maxFile)
	}
	p, err := read(name, b, opt)
	if err != nil {
		return nil, err
	}
	r := p.r
	if err := r.err(name, opt); err != nil {
		return nil, err
	}
	sortProblems(r.warnings)
	p.f.Warnings = told(name, r.warnings)
	return p.f, nil
}

// read reads all that the file says, right or wrong.
func read(name string, b []byte, opt Options) (*parser, error) {
	parse := parseTOML
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json":
		parse = parseJSON
	case ".yaml", ".yml":
		parse = parseYAML
	}
	p := &parser{r: &reader{}, opt: opt, f: &File{}}
	root, err := parse(b)
	if wrong, ok := errors.AsType[*problem](err); ok {
		p.r.problems = append(p.r.problems, wrong)
		return nil, p.r.err(name, opt)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	p.file(p.r.section(root, ""))
	return p, nil
}

// err is nil where nothing is wrong. What is allowed joins the warnings.
func (r *reader) err(name string, opt Options) error {
	remedy := ""
	switch {
	case opt.AllowUnsupported:
		r.warnings = append(r.warnings, r.ignored...)
	case len(r.ignored) > 0 && len(r.problems) == 0:
		remedy = "remove these, or deploy without what they ask for by --allow-unsupported"
		fallthrough
	default:
		r.problems = append(r.problems, r.ignored...)
	}
	r.ignored = nil
	if opt.Strict {
		r.problems, r.warnings = append(r.problems, r.warnings...), nil
	}
	if len(r.problems) == 0 {
		return nil
	}
	sortProblems(r.problems)
	return &Error{Problems: told(name, r.problems), Remedy: remedy}
}

func told(name string, ps []*problem) []Problem {
	var out []Problem
	for _, p := range ps {
		out = append(out, Problem{File: name, Line: p.pos.line, Column: p.pos.column, Text: p.text})
	}
	return out
}

// App is the app that a config file names, whatever else is wrong with it; or "".
func App(name string, b []byte) string {
	var p *parser
	if len(b) <= maxFile {
		p, _ = read(name, b, Options{}) // what does not parse names no app
	}
	if p == nil {
		return ""
	}
	return p.f.App
}
