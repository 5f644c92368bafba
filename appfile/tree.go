package appfile

import (
	"fmt"
	"slices"
)

// pos is a place in the file, from 1.
type pos struct{ line, column int }

// kind is what a value is, whichever notation it was written in.
type kind int

const (
	kindOther kind = iota // dates, times, and JSON's null
	kindString
	kindInt
	kindFloat
	kindBool
	kindList
	kindTable
)

// table is a table whose keys know their places.
type table struct {
	pos  pos
	keys []string // in order
	vals map[string]*value
}

// value is one value; one of its fields by kind is set.
type value struct {
	pos   pos // of its key
	kind  kind
	text  string // of strings, numbers and bools, as it is written
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

// maxDepth bounds how deep values may lie in each other.
const maxDepth = 32

// what names the value's kind for people.
func (v *value) what() string {
	switch v.kind {
	case kindString:
		return fmt.Sprintf("the string %q", v.text)
	case kindInt, kindFloat, kindBool:
		return v.text
	case kindList:
		if len(v.list) > 0 && !slices.ContainsFunc(v.list, func(e *value) bool { return e.table == nil }) {
			return "a list of tables"
		}
		return "a list"
	case kindTable:
		return "a table"
	case kindOther:
	}
	if v.null() {
		return "null"
	}
	return "a date or time"
}

// nothing says whether the value asks for nothing, so that it does no harm under any key.
func (v *value) nothing() bool {
	switch v.kind {
	case kindString:
		return v.text == ""
	case kindBool:
		return v.text == "false"
	case kindInt, kindFloat:
		return v.text == "0" || v.text == "0.0"
	case kindList:
		return len(v.list) == 0
	case kindTable:
		return len(v.table.keys) == 0
	case kindOther:
	}
	return v.null()
}

// null says whether the value is JSON's and YAML's word for none.
func (v *value) null() bool { return v.kind == kindOther && v.text == "null" }
