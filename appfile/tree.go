package appfile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// pos is a place in the file, from 1.
type pos struct{ line, column int }

// table is a TOML table whose keys know their places.
type table struct {
	pos  pos
	keys []string // in order
	vals map[string]*value
}

// value is one TOML value; one of its fields by kind is set.
type value struct {
	pos   pos // of its key
	kind  unstable.Kind
	text  string
	list  []*value
	table *table
}

func newTable(p pos) *table { return &table{pos: p, vals: map[string]*value{}} }

func (t *table) set(key string, v *value) {
	if _, ok := t.vals[key]; !ok {
		t.keys = append(t.keys, key)
	}
	t.vals[key] = v
}

// parse reads a document. Its problem, if any, is a *problem.
func parse(b []byte) (*table, error) {
	var all map[string]any
	if err := toml.Unmarshal(b, &all); err != nil { // finds what is not TOML, and keys given twice
		p := &problem{pos: pos{1, 1}, text: err.Error()}
		if d, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.pos.line, p.pos.column = d.Position()
			p.text = "this is not TOML: " + trimToml(d.Error())
		}
		return nil, p
	}
	var p unstable.Parser
	p.Reset(b)
	root := newTable(pos{1, 1})
	at := root
	for p.NextExpression() {
		e := p.Expression()
		keys := keysOf(&p, e)
		switch e.Kind {
		case unstable.KeyValue:
			t := at.descend(keys[:len(keys)-1])
			last := keys[len(keys)-1]
			t.set(last.name, valueOf(&p, e.Value(), last.pos))
		case unstable.Table:
			at = root.descend(keys)
		case unstable.ArrayTable:
			last := keys[len(keys)-1]
			at = newTable(last.pos)
			t := root.descend(keys[:len(keys)-1])
			v := t.vals[last.name]
			if v == nil {
				v = &value{pos: last.pos, kind: unstable.Array}
				t.set(last.name, v)
			}
			v.list = append(v.list, &value{pos: last.pos, kind: unstable.InlineTable, table: at})
		default: // comments
		}
	}
	if err := p.Error(); err != nil {
		return nil, &problem{pos: pos{1, 1}, text: "this is not TOML: " + err.Error()}
	}
	return root, nil
}

type key struct {
	name string
	pos  pos
}

func keysOf(p *unstable.Parser, e *unstable.Node) []key {
	switch e.Kind {
	case unstable.KeyValue, unstable.Table, unstable.ArrayTable:
	default:
		return nil
	}
	var out []key
	for it := e.Key(); it.Next(); {
		n := it.Node()
		at := p.Shape(n.Raw).Start
		out = append(out, key{string(n.Data), pos{at.Line, at.Column}})
	}
	return out
}

// descend is the table under t that the keys name, made where it is missing. In an array of tables it
// is the last one.
func (t *table) descend(keys []key) *table {
	for _, k := range keys {
		v := t.vals[k.name]
		if v != nil && v.table == nil && len(v.list) > 0 {
			v = v.list[len(v.list)-1]
		}
		if v == nil || v.table == nil {
			v = &value{pos: k.pos, kind: unstable.InlineTable, table: newTable(k.pos)}
			t.set(k.name, v)
		}
		t = v.table
	}
	return t
}

func valueOf(p *unstable.Parser, n *unstable.Node, at pos) *value {
	v := &value{pos: at, kind: n.Kind, text: string(n.Data)}
	switch n.Kind {
	case unstable.Array:
		for it := n.Children(); it.Next(); {
			v.list = append(v.list, valueOf(p, it.Node(), at))
		}
	case unstable.InlineTable:
		v.table = newTable(at)
		for it := n.Children(); it.Next(); {
			e := it.Node()
			keys := keysOf(p, e)
			if len(keys) == 0 {
				continue
			}
			last := keys[len(keys)-1]
			v.table.descend(keys[:len(keys)-1]).set(last.name, valueOf(p, e.Value(), last.pos))
		}
	default:
	}
	return v
}

func trimToml(s string) string {
	const prefix = "toml: "
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):]
	}
	return s
}

// what names the value's kind for people.
func (v *value) what() string {
	switch v.kind {
	case unstable.String:
		return fmt.Sprintf("the string %q", v.text)
	case unstable.Integer, unstable.Float, unstable.Bool:
		return v.text
	case unstable.Array:
		if len(v.list) > 0 && !slices.ContainsFunc(v.list, func(e *value) bool { return e.table == nil }) {
			return "a list of tables"
		}
		return "a list"
	case unstable.InlineTable:
		return "a table"
	default:
		return "a date or time"
	}
}
