package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestTheRootTokenIsNotGivenToWhoeverHasThePort(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	data := t.TempDir()
	for name, text := range map[string]string{"api.addr": strings.TrimPrefix(other.URL, "http://"), "root.token": "vol_secret"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, got := run(t, "apps", "list", "--data", data)
	if asked.Load() > 0 || !strings.Contains(got, "no server answers") {
		t.Errorf("somebody else's server was asked %d times; error %q", asked.Load(), got)
	}
}
