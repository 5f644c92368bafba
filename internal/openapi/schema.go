package openapi

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// object is a JSON object; encoding/json writes its keys in order.
type object = map[string]any

// schemas makes JSON schemas of Go types; structs become components.
type schemas struct {
	docs    *Docs
	asked   map[reflect.Type]bool // part of a request: clients leave out what they like
	defined map[string]any
	err     error // the first type that has no schema
}

// known are the types whose JSON reflection cannot see.
var known = map[reflect.Type]object{
	reflect.TypeFor[time.Time]():     {"type": "string", "format": "date-time"},
	reflect.TypeFor[time.Duration](): {"type": "integer", "description": "nanoseconds"},
	reflect.TypeFor[api.Timeout](): {
		"type": []string{"string", "number"}, "description": "a time as Go writes it, such as \"10s\", or a number of seconds", "examples": []any{"10s"},
	},
	reflect.TypeFor[volant.Duration](): {
		"type": []string{"string", "integer"}, "description": `such as "15s" or "1m30s"; a number is nanoseconds`, "examples": []any{"15s"},
	},
	reflect.TypeFor[volant.Autostop](): {
		"type": []string{"string", "boolean"}, "enum": []any{"off", "stop", "suspend", true, false}, "description": "false is off, true is stop",
	},
	reflect.TypeFor[api.Action](): {
		"type": []string{"integer", "string"}, "description": "a sum of 1 (read), 2 (write), 4 (create), 8 (delete) and 16 (control), or letters of \"rwcdC\"",
	},
	reflect.TypeFor[netip.Addr]():      {"type": "string"},
	reflect.TypeFor[json.RawMessage](): {},
}

// ask marks a type and all it holds as part of requests.
func (s *schemas) ask(t reflect.Type) {
	if s.asked[t] {
		return
	}
	s.asked[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Array:
		s.ask(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			s.ask(f.Type)
		}
	default:
	}
}

func (s *schemas) of(t reflect.Type) object {
	if k, ok := known[t]; ok {
		return clone(k)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return s.word(t)
	case reflect.Interface:
		return object{}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		o := s.of(t.Elem())
		if t.Elem().Kind() == reflect.Pointer && o["type"] != nil {
			o["type"] = []any{o["type"], "null"}
		}
		return object{"type": "object", "additionalProperties": o}
	case reflect.Struct:
		return s.component(t)
	default:
		s.fail(t)
		return object{}
	}
}

// word is a string, of a few known ones where its type has constants.
func (s *schemas) word(t reflect.Type) object {
	o := object{"type": "string"}
	if values := s.docs.consts[qualified(t)]; len(values) > 1 && !s.asked[t] { // one constant is an example
		o["enum"] = values
	}
	return o
}

func (s *schemas) component(t reflect.Type) object {
	if t.Name() == "" || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		s.fail(t)
		return object{}
	}
	name := s.name(t)
	ref := object{"$ref": "#/components/schemas/" + name}
	if _, done := s.defined[name]; done {
		return ref
	}
	s.defined[name] = nil // so that a type which holds itself ends
	props, required := object{}, []string{}
	s.fields(t, props, &required)
	o := object{"type": "object", "properties": props}
	if d := s.docs.types[qualified(t)]; d != "" {
		o["description"] = d
	}
	if len(required) > 0 && !s.asked[t] {
		slices.Sort(required)
		o["required"] = required
	}
	s.defined[name] = o
	return ref
}

// fields adds a struct's fields, those of embedded structs as if they were its own.
func (s *schemas) fields(t reflect.Type, props object, required *[]string) {
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			s.fields(f.Type, props, required)
			continue
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		o := s.of(f.Type)
		mayLack := strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")
		if f.Type.Kind() == reflect.Pointer && !mayLack && o["type"] != nil {
			o["type"] = []any{o["type"], "null"}
		}
		if d := s.docs.fields[qualified(t)+"."+f.Name]; d != "" {
			o["description"] = d
		}
		props[name] = o
		if !mayLack {
			*required = append(*required, name)
		}
	}
}

// name is a component's: that of the type, with its package where package api has one of that name.
func (s *schemas) name(t reflect.Type) string {
	if _, taken := s.docs.types["api."+t.Name()]; taken && pkg(t) != "api" {
		return qualified(t)
	}
	return t.Name()
}

func qualified(t reflect.Type) string { return pkg(t) + "." + t.Name() }

func pkg(t reflect.Type) string { return path.Base(t.PkgPath()) }

func (s *schemas) fail(t reflect.Type) {
	if s.err == nil {
		s.err = fmt.Errorf("type %s has no schema", t)
	}
}

func clone(o object) object {
	c := object{}
	maps.Copy(c, o)
	return c
}
