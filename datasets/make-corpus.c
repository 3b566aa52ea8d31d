/*
 * make-corpus: writes the embedded corpus: a small consistent world told in many sentences.
 *
 *	cc -O1 -o make-corpus make-corpus.c && ./make-corpus datasets
 *
 * The same bytes on every machine: integers only, one generator of random numbers, no clock,
    no locale. Facts are in
 * the tables, sentences in the documents' functions; `say` expands templates:
 *
 *	[a|b|c]   one of them		$x   the value of variable x (a letter)
 *	&         "a" or "an", as the next word asks	^   the next letter as a capital
 *
 * Sums whose numbers fall on `held_out()` appear only in heldout.jsonl and prompts.jsonl,
    so that a correct answer
 * there was computed and not remembered.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEN(a) ((int)(sizeof(a) / sizeof *(a)))

/* ---- the world: one row a line, however long ---- */

enum { A_NAME, A_YOUNG, A_SOUND, A_FOOD, A_HOME, A_KIND, A_COLOUR, A_SKILL, A_TIME };
static const char *const animals[][9] = {
	{ "fox", "cub", "barks", "mice and berries", "den", "mammal", "red",
	    "hears a mouse under the snow", "at dusk" },
	{ "owl", "owlet", "hoots", "mice", "hollow tree", "bird", "brown", "flies without a sound",
	    "at night" },
	{ "hen", "chick", "clucks", "grain", "coop", "bird", "white", "lays an egg a day",
	    "by day" },
	{ "cow", "calf", "moos", "grass", "byre", "mammal", "black and white", "gives milk",
	    "by day" },
	{ "sheep", "lamb", "bleats", "grass", "fold", "mammal", "white", "grows wool", "by day" },
	{ "bee", "grub", "hums", "nectar", "hive", "insect", "yellow and black", "makes honey",
	    "by day" },
	{ "frog", "tadpole", "croaks", "flies", "pond", "amphibian", "green",
	    "leaps ten times its length", "in the evening" },
	{ "duck", "duckling", "quacks", "water weeds", "reeds", "bird", "brown",
	    "swims in cold water", "by day" },
	{ "dog", "puppy", "barks", "meat", "kennel", "mammal", "brown", "guards the gate",
	    "by day" },
	{ "cat", "kitten", "purrs", "fish", "basket by the stove", "mammal", "grey", "climbs trees",
	    "at night" },
	{ "horse", "foal", "neighs", "hay", "stable", "mammal", "brown", "pulls the cart",
	    "by day" },
	{ "goat", "kid", "bleats", "leaves", "shed", "mammal", "white", "climbs steep rocks",
	    "by day" },
	{ "mouse", "pup", "squeaks", "seeds", "hole in the wall", "mammal", "grey",
	    "gnaws through rope", "at night" },
	{ "hare", "leveret", "drums with its feet", "clover", "hollow in the grass", "mammal",
	    "brown", "runs faster than a dog", "at dawn" },
	{ "crow", "nestling", "caws", "worms", "elm", "bird", "black",
	    "remembers where food is hidden", "by day" },
	{ "hedgehog", "hoglet", "snuffles", "beetles", "heap of leaves", "mammal", "brown",
	    "rolls into a ball", "at night" },
	{ "otter", "whelp", "whistles", "fish", "hole in the river bank", "mammal", "brown",
	    "swims under the ice", "at dusk" },
	{ "swan", "cygnet", "hisses", "water weeds", "nest of reeds", "bird", "white",
	    "flies long distances", "by day" },
	{ "donkey", "colt", "brays", "thistles", "stall", "mammal", "grey", "carries heavy sacks",
	    "by day" },
	{ "squirrel", "kit", "chatters", "nuts", "nest of twigs", "mammal", "red",
	    "buries nuts for the winter", "at dawn" },
};

enum { P_NAME, P_WHAT, P_WATER, P_FAME, P_HOUSE, P_COLOUR, P_DAY };
/* Place i lies at column i%4 from the west, row i/4 from the north. */
static const char *const places[16][7] = {
	{ "Aldermoor", "village", "the Willow river", "cheese", "chapel", "white", "Monday" },
	{ "Birchholt", "village", "a mill pond", "baskets", "water mill", "grey", "Tuesday" },
	{ "Cranlow", "town", "the Willow river", "woollen cloth", "town hall", "red", "Saturday" },
	{ "Dunmere", "fishing village", "Long Lake", "smoked trout", "boat house", "green",
	    "Friday" },
	{ "Elmstow", "market town", "the Stone brook", "clocks", "clock tower", "blue",
	    "Wednesday" },
	{ "Fernwick", "hamlet", "a deep well", "herbs", "glass house", "green", "Thursday" },
	{ "Gorsey", "village", "the Stone brook", "honey", "bee garden", "yellow", "Tuesday" },
	{ "Hazelby", "village", "Long Lake", "nut bread", "bakery", "brown", "Monday" },
	{ "Ivyden", "town", "the Willow river", "paper", "paper mill", "white", "Friday" },
	{ "Kelmouth", "harbour", "the sea", "salt", "lighthouse", "red", "Saturday" },
	{ "Larkhill", "hamlet", "a spring", "apples", "barn", "red", "Wednesday" },
	{ "Mossgate", "town", "the Stone brook", "iron tools", "forge", "black", "Thursday" },
	{ "Northpool", "harbour", "the sea", "rope", "rope walk", "grey", "Tuesday" },
	{ "Oakhampton", "market town", "a canal", "furniture", "timber hall", "brown", "Saturday" },
	{ "Pearfield", "village", "a canal", "pear cider", "orchard house", "yellow", "Monday" },
	{ "Quarry End", "hamlet", "a deep well", "slate", "stone bridge", "blue", "Wednesday" },
};

enum { T_NAME, T_USE, T_OF, T_WHO, T_KEPT, T_CARE };
static const char *const tools[][6] = {
	{ "hammer", "drive nails into wood", "steel and ash wood", "carpenter",
	    "on the wall of the workshop", "tighten its head" },
	{ "saw", "cut boards", "thin steel", "carpenter", "in a long wooden box", "wax its blade" },
	{ "axe", "split logs", "steel and ash wood", "woodcutter", "behind the barn door",
	    "sharpen its edge" },
	{ "spade", "dig trenches", "iron and oak", "gardener", "in the garden shed",
	    "scrape off the mud" },
	{ "rake", "gather dry leaves", "ash wood", "gardener", "in the garden shed",
	    "mend its teeth" },
	{ "plane", "smooth a rough board", "beech and steel", "carpenter", "on the work bench",
	    "set its iron" },
	{ "chisel", "carve a joint", "hard steel", "carpenter", "in a leather roll",
	    "sharpen its edge" },
	{ "needle", "sew cloth", "bright steel", "weaver", "in a cork", "keep it dry" },
	{ "shears", "cut wool", "spring steel", "shepherd", "on a hook in the fold",
	    "oil its joint" },
	{ "ladder", "reach the roof", "pine", "thatcher", "along the wall of the barn",
	    "check every rung" },
	{ "bucket", "carry water", "oak and iron hoops", "farmer", "beside the well",
	    "keep it wet" },
	{ "tongs", "hold hot iron", "iron", "smith", "next to the fire", "straighten its jaws" },
	{ "net", "catch trout", "hemp", "fisher", "over the rail of the boat house",
	    "mend its holes" },
	{ "sickle", "cut barley", "curved steel", "farmer", "above the barn door",
	    "sharpen its edge" },
	{ "oven peel", "lift loaves from the oven", "beech", "baker", "beside the oven",
	    "brush off the flour" },
	{ "file", "smooth a key", "hard steel", "clock maker", "in a drawer of the bench",
	    "brush its teeth" },
};

enum { M_NAME, M_JOB, M_POWER, M_FIRST, M_SECOND, M_THIRD, M_FAULT, M_CAUSE, M_REMEDY };
static const char *const machines[][9] = {
	{ "water mill", "grinds grain into flour", "falling water", "wheel", "shaft", "mill stone",
	    "turns slowly", "the sluice is full of weeds", "clear the sluice" },
	{ "pump", "lifts water from the well", "an arm", "handle", "piston", "valve", "sucks air",
	    "the leather of the valve is dry", "wet the leather" },
	{ "tower clock", "shows the hours", "a falling weight", "weight", "pendulum", "hand",
	    "loses time", "the pendulum is too long", "raise the bob" },
	{ "loom", "weaves cloth", "two feet", "pedal", "harness", "shuttle", "breaks the thread",
	    "the warp is too tight", "loosen the warp" },
	{ "cider press", "squeezes juice from fruit", "a long lever", "screw", "plate", "basket",
	    "leaks", "a stave of the basket is cracked", "change the stave" },
	{ "kiln", "bakes clay into bricks", "a wood fire", "fire box", "flue", "chamber",
	    "stays too cold", "the flue is blocked with soot", "sweep the flue" },
	{ "crane", "lifts heavy stones", "a tread wheel", "tread wheel", "rope", "hook", "slips",
	    "the brake is worn", "fit a new brake shoe" },
	{ "lathe", "turns round legs for chairs", "a foot pedal", "pedal", "belt", "spindle",
	    "shakes", "the belt is loose", "tighten the belt" },
	{ "steam engine", "drives the saw mill", "steam", "boiler", "piston", "fly wheel", "knocks",
	    "the bearing has no oil", "oil the bearing" },
	{ "printing press", "prints the almanac", "an arm", "bar", "screw", "plate",
	    "prints pale pages", "the rollers have too little ink", "ink the rollers" },
	{ "windmill", "saws timber", "the wind", "sail", "gear", "saw blade", "stands still",
	    "the sails do not face the wind", "turn the cap" },
	{ "bellows", "blow air into the forge", "an arm", "lever", "leather bag", "nozzle",
	    "blow weakly", "the leather has a hole", "patch the leather" },
};

enum { C_NAME, C_SEASON, C_WEATHER, C_WORK, C_SKY };
static const char *const months[12][5] = {
	{ "January", "winter", "hard frost", "mend tools by the fire", "long nights" },
	{ "February", "winter", "snow", "prune the apple trees", "pale mornings" },
	{ "March", "spring", "strong wind", "plough the fields", "fast clouds" },
	{ "April", "spring", "short showers", "sow barley", "rainbows" },
	{ "May", "spring", "mild sun", "lead the cows to grass", "bright evenings" },
	{ "June", "summer", "warm days", "cut the hay", "the longest day" },
	{ "July", "summer", "heat", "shear the sheep", "blue skies" },
	{ "August", "summer", "thunder", "harvest the barley", "falling stars" },
	{ "September", "autumn", "cool mornings", "pick apples", "a large low moon" },
	{ "October", "autumn", "fog", "press cider", "flights of geese" },
	{ "November", "autumn", "steady rain", "stack firewood", "grey clouds" },
	{ "December", "winter", "snow and ice", "feed the animals in the barn",
	    "the shortest day" },
};
static const int month_days[12] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
static const char *const days[7] = { "Monday", "Tuesday", "Wednesday", "Thursday", "Friday",
    "Saturday", "Sunday" };

enum { R_NAME, R_WITH, R_FIRST, R_SECOND, R_THIRD, R_TOOL, R_STEP1, R_STEP2, R_STEP3, R_END };
static const char *const recipes[][10] = {
	{ "nut bread", "butter", "flour", "hazelnuts", "yeast", "baking tin",
	    "mix the flour and the yeast with warm water",
	    "knead the dough and fold in the hazelnuts", "let the dough rise in a warm place",
	    "bake the loaf until it sounds hollow" },
	{ "barley soup", "bread", "barley", "carrots", "leeks", "large pot", "wash the barley",
	    "cut the carrots and the leeks", "put everything in the pot with water",
	    "simmer the soup until the barley is soft" },
	{ "apple cake", "cream", "apples", "eggs", "flour", "round tin", "beat the eggs with sugar",
	    "stir in the flour", "lay the apples on the dough",
	    "bake the cake until it is golden" },
	{ "fish stew", "dark bread", "trout", "potatoes", "onions", "deep pot", "clean the trout",
	    "fry the onions in butter", "add the potatoes and water",
	    "cook the stew until the fish falls apart" },
	{ "pancakes", "honey", "milk", "eggs", "flour", "flat pan", "whisk the eggs with the milk",
	    "stir in the flour", "heat a little butter in the pan",
	    "fry each pancake on both sides" },
	{ "pear jam", "toast", "pears", "sugar", "lemon juice", "copper pot", "peel the pears",
	    "cut the pears into small pieces", "mix the pears with the sugar",
	    "boil the jam until it sets" },
	{ "bean salad", "cheese", "beans", "onions", "herbs", "wooden bowl", "boil the beans",
	    "chop the onions and the herbs", "let the beans cool",
	    "mix everything with oil and vinegar" },
	{ "cheese pie", "salad", "cheese", "eggs", "flour", "shallow tin",
	    "make a dough of flour and butter", "grate the cheese", "beat the eggs with the cheese",
	    "bake the pie until the top is brown" },
	{ "mushroom rice", "herbs", "rice", "mushrooms", "garlic", "heavy pan",
	    "slice the mushrooms", "fry the garlic in butter", "add the rice and stir",
	    "pour in water until the rice is soft" },
	{ "honey biscuits", "milk", "honey", "oats", "butter", "baking sheet",
	    "melt the butter with the honey", "stir in the oats", "shape small round biscuits",
	    "bake them until the edges are brown" },
};
static const int recipe_minutes[] = { 45, 60, 40, 35, 20, 50, 30, 55, 25, 15 };

enum { W_NAME, W_PLACE, W_MAKES, W_NEEDS };
static const char *const workers[][4] = {
	{ "baker", "bakery", "bread", "flour" },
	{ "miller", "mill", "flour", "grain" },
	{ "smith", "forge", "horseshoes", "iron" },
	{ "carpenter", "workshop", "tables", "boards" },
	{ "weaver", "weaving room", "cloth", "wool" },
	{ "potter", "pottery", "jugs", "clay" },
	{ "beekeeper", "bee garden", "honey", "new hives" },
	{ "clock maker", "clock tower", "clocks", "brass" },
	{ "rope maker", "rope walk", "rope", "hemp" },
	{ "gardener", "glass house", "herbs", "seeds" },
	{ "fisher", "boat house", "smoked trout", "nets" },
	{ "shepherd", "fold", "wool", "hay" },
};

static const char *const goods[] = {
	"apples", "eggs", "loaves", "candles", "buttons", "nails", "jugs", "baskets", "pears",
	    "ropes", "bricks", "coins",
	"seeds", "ribbons", "keys", "plates"
};
static const char *const opposites[][2] = { { "hot", "cold" }, { "wet", "dry" }, { "high", "low" },
    { "early", "late" },
	{ "heavy", "light" }, { "full", "empty" }, { "old", "new" }, { "near", "far" },
	    { "open", "closed" }, { "sharp", "blunt" },
	{ "loud", "quiet" }, { "fast", "slow" }, { "deep", "shallow" }, { "rough", "smooth" },
	    { "thick", "thin" }, { "sweet", "sour" } };

/* ---- random numbers, text ---- */

static uint64_t rng;		/* splitmix64, Steele, Lea, Flood, OOPSLA 2014 */

static int below(int n)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (int)((z ^ z >> 31) >> 33) % n;
}

static void shuffle(int *p, int n)
{
	for (int i = 0; i < n; i++)
		p[i] = i;
	for (int i = n - 1; i > 0; i--) {
		int j = below(i + 1), t = p[i];

		p[i] = p[j], p[j] = t;
	}
}

struct text {
	char s[8192];
	int n;
	bool capital, article;	/* pending: ^ and & */
};
static struct text out, second;	/* `second`: the other half of a question or a preference */
static const char *var[128];

static void put(struct text *t, char c)
{
	if (t->article && c != ' ') {
		if (strchr("aeiouAEIOU", c))
			t->s[t->n - 1] = 'n', t->s[t->n++] = ' ';
		t->article = false;
	}
	if (t->capital && isalpha((unsigned char)c))
		c = (char)toupper((unsigned char)c), t->capital = false;
	if (t->n + 2 >= (int)sizeof t->s) {
		fprintf(stderr, "make-corpus: document too long\n");
		exit(70);
	}
	t->s[t->n++] = c;
	t->s[t->n] = 0;
}

static void expand(struct text *t, const char *p, const char *end)
{
	while (p < end) {
		if (*p == '$') {
			const char *v = var[(unsigned char)p[1]];

			while (*v)
				put(t, *v++);
			p += 2;
		} else if (*p == '[') {
			const char *close = strchr(p, ']'), *a = p + 1, *b;
			int n = 1, k;

			for (b = a; b < close; b++)
				n += *b == '|';
			for (k = below(n); k > 0; k--)
				a = strchr(a, '|') + 1;
			for (b = a; *b != '|' && *b != ']'; b++)
				;
			expand(t, a, b);
			p = close + 1;
		} else if (*p == '&') {
			put(t, 'a');
			t->article = true;
			p++;
		} else if (*p == '^') {
			t->capital = true;
			p++;
		} else {
			put(t, *p++);
		}
	}
}

static void say_to(struct text *t, const char *template)
{
	expand(t, template, template + strlen(template));
}

static void say(const char *template)
{
	say_to(&out, template);
}

static void clear(struct text *t)
{
	t->n = 0;
	t->s[0] = 0;
	t->capital = t->article = false;
}

static void let(char name, const char *value)
{
	var[(unsigned char)name] = value;
}

static void let_int(char name, int value)
{
	static char digits[128][12];

	snprintf(digits[(unsigned char)name], sizeof digits[0], "%d", value);
	let(name, digits[(unsigned char)name]);
}

/* Says lo to hi of the n templates in random order, as one paragraph. */
static void say_some(const char *const *templates, int n, int lo, int hi)
{
	int order[64], m = lo + below(hi - lo + 1);

	shuffle(order, n);
	for (int i = 0; i < m && i < n; i++) {
		if (i)
			say(" ");
		say(templates[order[i]]);
	}
}

/* Lists the words, "a, b and c". */
static void say_list(const char *const *w, int n)
{
	for (int i = 0; i < n; i++) {
		if (i)
			say(i == n - 1 ? " and " : ", ");
		say(w[i]);
	}
}

/* ---- arithmetic ---- */

struct sum { char op; int a, b, c; };	/* c = a op b */

static bool held_out(char op, int a, int b)
{
	int lo = a < b ? a : b, hi = a < b ? b : a;

	if (op == '-')
		lo = b, hi = a - b, op = '+';	/* 12 - 5 goes with 5 + 7 */
	else if (op == '/')
		lo = b, hi = a / b, op = '*';
	if (lo > hi) {
		int t = lo;

		lo = hi, hi = t;
	}
	return (lo * 31 + hi * 17 + op * 7) % 8 == 3;
}

static struct sum draw_sum(const char *ops, bool held)
{
	struct sum s;

	do {
		s.op = ops[below((int)strlen(ops))];
		if (s.op == '+' || s.op == '-') {
			s.a = 1 + below(20), s.b = 1 + below(20), s.c = s.a + s.b;
		} else {
			s.a = 2 + below(11), s.b = 2 + below(11), s.c = s.a * s.b;
		}
		if (s.op == '-' || s.op == '/') {
			int t = s.a;

			s.a = s.c, s.c = t;
		}
	} while (held_out(s.op, s.a, s.b) != held);
	let_int('a', s.a), let_int('b', s.b), let_int('c', s.c);
	let('o', s.op == '+' ? "plus" : s.op == '-' ? "minus" : s.op == '*' ? "times" :
	    "divided by");
	let('p', s.op == '+' ? "+" : s.op == '-' ? "-" : s.op == '*' ? "*" : "/");
	return s;
}

/* A question in words about one sum, and in `answer` its sentence; both end without a newline. */
static void word_problem(bool held, struct text *question, struct text *answer)
{
	static const char *const ask[4][3] = {
		{ "[There are|You see] $a $g in the basket. [^the|A] $w brings $b more. How many "
		    "$g are there now?",
		  "The $w sells $a $g in the morning and $b in the afternoon. How many $g is that "
		    "in all?",
		  "One shelf holds $a $g and the other holds $b. How many $g are on both "
		    "shelves?" },
		{ "There are $a $g in the basket. The $w takes $b away. How many $g are left?",
		  "The $w has $a $g and sells $b. How many $g remain?",
		  "Of $a $g, $b are broken. How many $g are whole?" },
		{ "There are $a boxes with $b $g each. How many $g are there?",
		  "The $w makes $a $g a day. How many $g in $b days?",
		  "One of the $g costs $a coins. How many coins do $b of them cost?" },
		{ "The $w shares $a $g between $b friends. How many $g does each get?",
		  "The $w packs $a $g in $b equal boxes. How many $g are in each box?",
		  "$b boxes hold $a $g in all. How many $g are in one box?" },
	};
	struct sum s = draw_sum("+-*/", held);
	int kind = s.op == '+' ? 0 : s.op == '-' ? 1 : s.op == '*' ? 2 : 3, which = below(3);

	let('g', goods[below(LEN(goods))]);
	let('w', workers[below(LEN(workers))][W_NAME]);
	say_to(question, ask[kind][which]);
	say_to(answer, "$a $p $b = $c. The answer is $c.");
}

static void doc_sums(bool held)
{
	int n = 4 + below(7), form = below(4);

	say("[Arithmetic.|Sums for today.|The school room.|Practice.]\n");
	for (int i = 0; i < n; i++) {
		draw_sum(form == 3 ? "*" : "+-*/", held);
		say(form == 0 ? "$a $p $b = $c\n" : form == 1 ? "What is $a $o $b? $c.\n" :
		    form == 2 ? "$a $o $b is $c.\n" : "$a times $b is $c.\n");
	}
	out.n--;
	out.s[out.n] = 0;
}

static void doc_problem(bool held)
{
	int n = 1 + below(3);

	for (int i = 0; i < n; i++) {
		if (i)
			say("\n");
		say("Question: ");
		word_problem(held, &out, &second);
		say("\nAnswer: ");
		say_to(&out, second.s);
		clear(&second);
	}
}

/* ---- documents of the other topics ---- */

static void let_animal(int i)
{
	const char *const *a = animals[i];

	let('n', a[A_NAME]), let('y', a[A_YOUNG]), let('s', a[A_SOUND]), let('f', a[A_FOOD]);
	let('h', a[A_HOME]);
	let('k', a[A_KIND]), let('c', a[A_COLOUR]), let('d', a[A_SKILL]), let('t', a[A_TIME]);
}

static void doc_animal(void)
{
	static const char *const more[] = {
		"It [eats|feeds on|likes] $f.",
		"Its [home|place] is the $h.",
		"A young $n is called & $y.",
		"[You can hear it, for it|When it calls it|It] $s.",
		"The $n is [awake|busy|seen most often] $t.",
		"Its [coat is|colour is] $c.",
		"It is well known that the $n $d.",
		"Like every $k, it [looks after|cares for] its young.",
		"[In winter|When snow falls] it [stays near|rests in] the $h.",
		"The $y [follows|learns from] the old $n.",
		"Nobody is surprised when the $n $d.",
		"[If|When] you find the $h, the $n is not far away.",
		"Give it $f and it will [stay|come back].",
	};

	let_animal(below(LEN(animals)));
	say("[The $n is & $k.|^& $n is & $c $k.|About the $n.|^the $n lives in the $h.] ");
	say_some(more, LEN(more), 4, 8);
}

static void doc_two_animals(void)
{
	int i = below(LEN(animals)), j = (i + 1 + below(LEN(animals) - 1)) % LEN(animals);
	const char *const *a = animals[i], *const *b = animals[j];

	let('a', a[A_NAME]), let('b', b[A_NAME]), let('c', a[A_FOOD]), let('d', b[A_FOOD]);
	let('e', a[A_HOME]), let('f', b[A_HOME]), let('g', a[A_SOUND]), let('h', b[A_SOUND]),
	    let('i', a[A_KIND]);
	let('j', b[A_KIND]);
	let('k', a[A_YOUNG]), let('l', b[A_YOUNG]), let('m', a[A_TIME]), let('n', b[A_TIME]);
	say("[The $a and the $b.|How do the $a and the $b differ?] The $a $g and the $b $h. ");
	say("The $a lives in the $e, [but|while] the $b lives in the $f. ");
	say("[To feed them, bring $c for the $a and $d for the $b.|The $a eats $c, the $b eats "
	    "$d.] ");
	say(!strcmp(a[A_KIND], b[A_KIND]) ? "Both are of one kind: & $i. " :
	    "The $a is & $i and the $b is & $j. ");
	say(!strcmp(a[A_TIME], b[A_TIME]) ? "Both are awake $m. " :
	    "The $a is awake $m and the $b $n. ");
	say("The young are called $k and $l.");
}

static void let_place(int i)
{
	const char *const *p = places[i];

	let('n', p[P_NAME]), let('w', p[P_WHAT]), let('r', p[P_WATER]), let('f', p[P_FAME]);
	let('h', p[P_HOUSE]);
	let('c', p[P_COLOUR]), let('d', p[P_DAY]);
}

/* Says how to walk from place i to place j: "two miles north and one mile east". */
static void say_way(struct text *t, int i, int j)
{
	static const char *const miles[] = { "", "one mile", "two miles", "three miles" };
	int dx = j % 4 - i % 4, dy = j / 4 - i / 4;

	if (dy) {
		let('1', miles[abs(dy)]), let('2', dy < 0 ? "north" : "south");
		say_to(t, "$1 $2");
	}
	if (dx) {
		let('1', miles[abs(dx)]), let('2', dx < 0 ? "west" : "east");
		say_to(t, dy ? " and $1 $2" : "$1 $2");
	}
}

static void doc_place(void)
{
	static const char *const more[] = {
		"It lies [by|on|near] $r.",
		"[It is known for its|People come here to buy|The best thing here is the] $f.",
		"The $h is [painted $c|$c].",
		"[Market day is|The market is held on] $d.",
		"On $d the [square|street] is full of [stalls|carts].",
		"[From far away you see|Every child here can draw] the $c $h.",
		"[Boats|Carts|Donkeys] carry the $f away.",
		"The water comes from $r.", "If you want $f, go to $n.",
	};
	int i = below(16), j = (i + 1 + below(15)) % 16;

	let_place(i);
	say("[$n is & $w.|The $w of $n is not large.|Let us visit $n.] ");
	say_some(more, LEN(more), 3, 6);
	let('m', places[j][P_NAME]);
	say(" [To reach $m|From here to $m], walk ");
	say_way(&out, i, j);
	say(".");
}

static void doc_ways(void)
{
	int i = below(16), n = 2 + below(3), order[16];

	shuffle(order, 16);
	let('n', places[i][P_NAME]);
	say("[Roads from $n.|The sign post in $n.|How to walk from $n.]");
	for (int k = 0; k < n; k++) {
		int j = order[k] != i ? order[k] : order[15];

		let('m', places[j][P_NAME]);
		say("\n[To|For] $m: ");
		say_way(&out, i, j);
		say(".");
	}
}

static void let_month(int i)
{
	let('m', months[i][C_NAME]), let('s', months[i][C_SEASON]), let('w', months[i][C_WEATHER]);
	let('k', months[i][C_WORK]), let('y', months[i][C_SKY]), let_int('d', month_days[i]);
	let_int('i', i + 1);
	let('p', months[(i + 11) % 12][C_NAME]), let('f', months[(i + 1) % 12][C_NAME]);
}

static void doc_month(void)
{
	static const char *const more[] = {
		"It has $d days.",
		"[It brings $w.|Expect $w.|The weather: $w.]",
		"[On the farm it is time to $k.|Now the farmers $k.]",
		"It comes after $p and before $f.",
		"[It is month number $i of the year.|Count the months: it is number $i.]",
		"Look up and you will see $y.",
		"[When $m ends, $f begins.|After the last day of $m comes $f.]",
		"In $m the people $k.", "The almanac for $m promises $w.",
	};

	let_month(below(12));
	say("[$m is & $s month.|The month of $m belongs to $s.|$m.] ");
	say_some(more, LEN(more), 4, 7);
}

static void doc_weather(void)
{
	int i = below(12), d = below(7);
	int hot = i >= 4 && i <= 8, t = hot ? 14 + below(14) : -4 + below(14), rise = 1 + below(5);

	let_month(i);
	let('d', days[d]), let('e', days[(d + 1) % 7]), let('n', places[below(16)][P_NAME]);
	let_int('a', t), let_int('b', t + rise), let_int('c', rise);
	say("Weather report for $n, $d, [early|late] $m. [^the morning has|Today we see] $a "
	    "degrees[ and $w|]. ");
	say("[Tomorrow, on $e,|On $e] it will be $c degree");
	say(rise == 1 ? "" : "s");
	say(" warmer: $b degrees. ");
	say("[That is usual for $s.|It is $s, after all.|Such is $s in $n.] [Farmers $k.|Good "
	    "days to $k.]");
}

static void doc_tool(void)
{
	static const char *const more[] = {
		"It is made of $o.",
		"The $w [keeps it|leaves it] $k.",
		"[After work|In the evening], $c.",
		"Without & $n it is hard to $u.",
		"[If you lend it, ask for it back.|Do not leave it in the rain.|A good one lasts "
		    "for years.]",
		"The $w [uses|needs] it to $u.",
		"You will find it $k.", "[Take care|Remember]: $c.",
	};
	const char *const *t = tools[below(LEN(tools))];

	let('n', t[T_NAME]), let('u', t[T_USE]), let('o', t[T_OF]), let('w', t[T_WHO]);
	let('k', t[T_KEPT]), let('c', t[T_CARE]);
	say("[^& $n is a tool to $u.|The $n is used to $u.|^the $w owns & $n.] ");
	say_some(more, LEN(more), 3, 6);
}

static void let_machine(int i)
{
	const char *const *m = machines[i];

	let('n', m[M_NAME]), let('j', m[M_JOB]), let('p', m[M_POWER]), let('1', m[M_FIRST]);
	let('2', m[M_SECOND]);
	let('3', m[M_THIRD]), let('f', m[M_FAULT]), let('c', m[M_CAUSE]), let('r', m[M_REMEDY]);
	let('V', i == LEN(machines) - 1 ? "" : "s");	/* "bellows" is the plural one */
	let('B', i == LEN(machines) - 1 ? "are" : "is");
	let('D', i == LEN(machines) - 1 ? "do" : "does");
}

static void doc_machine(void)
{
	let_machine(below(LEN(machines)));
	say("[The $n $j.|How the $n work$V.|This is the manual of the $n, which $j.] ");
	say("[It is driven by|The power comes from] $p. The $1 moves the $2, and the $2 moves the "
	    "$3. ");
	say("[If the $n $f, the reason is that $c.|Fault: the $n $f. Cause: $c.] ");
	say("[Then $r.|Remedy: $r.|To repair it, $r.] [Stop the $1 before you touch the $3.|Keep "
	    "hands away from the $3.|Oil the $1 once a month.|]");
	while (out.s[out.n - 1] == ' ')
		out.s[--out.n] = 0;
}

static void doc_recipe(void)
{
	int i = below(LEN(recipes)), people = 2 + 2 * below(3), form = below(2);
	const char *const *r = recipes[i];

	let('n', r[R_NAME]), let('w', r[R_WITH]), let('1', r[R_FIRST]), let('2', r[R_SECOND]);
	let('3', r[R_THIRD]);
	let('t', r[R_TOOL]), let('5', r[R_STEP1]), let('6', r[R_STEP2]), let('7', r[R_STEP3]);
	let('8', r[R_END]);
	let_int('m', recipe_minutes[i]), let_int('p', people), let_int('g', 100 * people),
	    let_int('h', 50 * people);
	say("[Recipe:|How to make|Cooking:] $n for $p people.\n");
	say("[You need|Take] $g grams of $1, $h grams of $2, some $3 and a $t.\n");
	say(form ? "1. ^$5.\n2. ^$6.\n3. ^$7.\n4. ^$8.\n" : "First $5. Then $6. Next $7. Finally "
	    "$8.\n");
	say("[It takes|The time is] $m minutes. [Serve|Eat] it with $w.");
}

static void doc_story(void)
{
	static const char *const ends[] = {
		"[From that day on|Since then] the $a and the $b were friends.",
		"And so the $a learned that [help is better than haste|two see more than one|a "
		    "friend is worth more than $c].",
		"That evening they shared $c [by the fire|under the elm|near the $e].",
		"The $b laughed, and the $a laughed too.",
	};
	int i = below(LEN(animals)), j = (i + 1 + below(LEN(animals) - 1)) % LEN(animals);
	int t = below(LEN(tools)), m = below(12);

	let('a', animals[i][A_NAME]), let('b', animals[j][A_NAME]), let('c', animals[i][A_FOOD]);
	let('d', animals[j][A_SKILL]);
	let('e', animals[i][A_HOME]), let('f', animals[j][A_HOME]), let('g', animals[i][A_SOUND]);
	let('t', tools[t][T_NAME]);
	let('u', tools[t][T_USE]), let('w', tools[t][T_WHO]), let('n', places[below(16)][P_NAME]);
	let('m', months[m][C_NAME]);
	let('x', months[m][C_WEATHER]), let('y', animals[j][A_FOOD]);
	say("[Once upon a time|One day in $m|Long ago], near $n, & $a [was hungry|looked for "
	    "$c|could not sleep]. ");
	say("[There was $x.|^the season brought $x.|It was $m, and there was $x.] ");
	say("[The door of the $e was closed.|A stone had fallen before the $e.|The path to the $e "
	    "was gone.] ");
	say("\"[Who will help me?|What shall I do?|I cannot get home,]\" said the $a. [It tried "
	    "alone and failed.|It waited and waited.|It sat down.] ");
	say("[Then|After a while] & $b came from the $f. \"[I can help|Let me try|Do not "
	    "worry],\" said the $b. ");
	say("[Everyone knows that the $b $d.|For the $b $d, as you know.] ");
	say("[The $w lent them & $t.|They borrowed & $t from the $w.|They found & $t beside the "
	    "road.] [With it you can $u.|It is made to $u.] ");
	say("[Soon|Before night] the work was done. ");
	say(ends[below(LEN(ends))]);
}

static void say_price(bool held)
{
	draw_sum("*", held);
	say("I need $m. What does one piece cost?\n^$W: One piece costs $a coins. How many do you "
	    "want?\n");
	say("^$V: $b, please.\n^$W: $a times $b is $c. That makes $c coins.\n^$V: Here they are. ");
}

static void say_directions(void)
{
	int from = below(16), to = (from + 1 + below(15)) % 16;

	let('m', places[from][P_NAME]), let('n', places[to][P_NAME]), let('f', places[to][P_FAME]);
	say("I want to buy $f. Where [must|should] I go?\n^$W: $n is known for $f.\n^$V: And how "
	    "do I get there from $m?\n^$W: Walk ");
	say_way(&out, from, to);
	say(".\n^$V: ");
}

static void say_waiting(void)
{
	int day = below(7);

	let_month(below(12));
	let('t', days[day]), let('u', days[(day + 1) % 7]);
	say("[I am waiting for $N.|My $N did not come.|I have no $N left.]\n^$W: Today is $t. ");
	say("[The cart comes on $u.|Tomorrow is $u, and the cart will come.]\n^$V: In $m one must "
	    "be patient.\n");
	say("^$W: Yes, $m [brings|means] $w.\n^$V: ");
}

static void doc_dialogue(bool held)
{
	int i = below(LEN(workers));
	int j = (i + 1 + below(LEN(workers) - 1)) % LEN(workers), kind = below(3);

	let('W', workers[i][W_NAME]), let('V', workers[j][W_NAME]), let('N', workers[j][W_NEEDS]);
	let('m', workers[i][W_MAKES]);
	say("^$W: [Good morning|Good day|Hello]. [How are you?|You are early today.|Come "
	    "in.]\n^$V: ");
	if (kind == 0)
		say_price(held);
	else if (kind == 1)
		say_directions();
	else
		say_waiting();
	say("[Thank you.|Many thanks.|That is kind of you.]\n^$W: [Good bye.|Safe travels.|Until "
	    "next time.]");
}

static void doc_list(void)
{
	const char *w[8];
	int order[32], kind = below(5), n = 4 + below(4), k = below(7);

	if (kind == 0) {		/* in the order of the alphabet */
		shuffle(order, LEN(goods));
		for (int i = 0; i < n; i++)
			w[i] = goods[order[i]];
		say("[Sort|Put in order]: ");
		say_list(w, n);
		for (int i = 1; i < n; i++)
			for (int j = i; j > 0 && strcmp(w[j - 1], w[j]) > 0; j--) {
				const char *t = w[j];

				w[j] = w[j - 1], w[j - 1] = t;
			}
		say(".\n[Sorted|In order]: ");
		say_list(w, n);
		say(".");
	} else if (kind == 1) {
		int step = 2 + below(9), start = below(2) * step;

		let_int('s', step);
		say("[Count|Counting] by $s: ");
		for (int i = 0; i < n + 4; i++) {
			let_int('x', start + i * step);
			say(i ? ", $x" : "$x");
		}
		say(".");
	} else if (kind == 2) {
		say("[Opposites.|The opposite of each word.]");
		shuffle(order, LEN(opposites));
		for (int i = 0; i < n; i++) {
			int side = below(2);

			let('x', opposites[order[i]][side]);
			let('y', opposites[order[i]][1 - side]);
			say("\n$x: $y");
		}
	} else if (kind == 3) {
		say("[The days of the week,|Seven days,] starting with ");
		let('d', days[k]);
		say("$d: ");
		for (int i = 0; i < 7; i++)
			w[i] = days[(k + i) % 7];
		say_list(w, 7);
		say(".");
	} else {
		let('w', workers[below(LEN(workers))][W_NAME]);
		say("[Shopping list of|What to buy for|A list for] the $w:");
		shuffle(order, LEN(goods));
		for (int i = 0; i < n; i++) {
			let_int('x', 2 + below(11)), let('g', goods[order[i]]);
			say("\n- $x $g");
		}
	}
}

static void make_document(bool held)
{
	int r = below(100);

	clear(&out);
	if (r < 14)
		doc_animal();
	else if (r < 20)
		doc_two_animals();
	else if (r < 30)
		doc_place();
	else if (r < 35)
		doc_ways();
	else if (r < 43)
		doc_month();
	else if (r < 48)
		doc_weather();
	else if (r < 56)
		doc_tool();
	else if (r < 63)
		doc_machine();
	else if (r < 70)
		doc_recipe();
	else if (r < 77)
		doc_story();
	else if (r < 84)
		doc_dialogue(held);
	else if (r < 90)
		doc_list();
	else if (r < 96)
		doc_sums(held);
	else
		doc_problem(held);
}

/* ---- questions: `out` is the question, `second` the answer, `wrong` a false one ---- */

static struct text wrong;

static int other(int i, int n)
{
	return (i + 1 + below(n - 1)) % n;
}

/* One column of another row that says something else. */
static const char *differs(const char *const *table, int rows, int width, int row, int column)
{
	const char *right = table[row * width + column], *got;

	do
		got = table[other(row, rows) * width + column];
	while (!strcmp(got, right));
	return got;
}

static void ask_animal(void)
{
	static const struct { int column; const char *question, *answer; } q[] = {
		{ A_YOUNG, "[What is a young $n called?|What do you call the young of the $n?]",
		    "[A young $n is called & $x.|It is called & $x.]" },
		{ A_FOOD, "[What does the $n eat?|What should I feed & $n?]",
		    "[The $n eats $x.|It likes $x.]" },
		{ A_HOME, "[Where does the $n live?|Where can I find the $n?]",
		    "[The $n lives in the $x.|Its home is the $x.]" },
		{ A_SOUND, "[What sound does the $n make?|How does & $n sound?]",
		    "[The $n $x.|When it calls it $x.]" },
		{ A_KIND, "What kind of animal is the $n?", "[The $n is & $x.|It is & $x.]" },
		{ A_SKILL, "What is special about the $n?", "It is well known that the $n $x." },
		{ A_TIME, "When is the $n awake?", "The $n is awake $x." },
	};
	int i = below(LEN(animals)), k = below(LEN(q));

	let('n', animals[i][A_NAME]), let('x', animals[i][q[k].column]);
	say(q[k].question);
	say_to(&second, q[k].answer);
	let('x', differs(&animals[0][0], LEN(animals), 9, i, q[k].column));
	say_to(&wrong, q[k].answer);
}

static void ask_place(void)
{
	static const struct { int column; const char *question, *answer; } q[] = {
		{ P_FAME, "[What is $n known for?|What can I buy in $n?]",
		    "[$n is known for its $x.|The best thing there is the $x.]" },
		{ P_DAY, "When is market day in $n?", "[The market in $n is held on $x.|Market "
		    "day is $x.]" },
		{ P_COLOUR, "What colour is the $h of $n?", "The $h of $n is $x." },
		{ P_WATER, "[Where does $n lie?|Where does the water of $n come from?]",
		    "[$n lies near $x.|Look for $x.]" },
	};
	int i = below(16), j = other(i, 16), k = below(LEN(q) + 2);

	let('n', places[i][P_NAME]), let('h', places[i][P_HOUSE]), let('m', places[j][P_NAME]);
	if (k < LEN(q)) {
		let('x', places[i][q[k].column]);
		say(q[k].question);
		say_to(&second, q[k].answer);
		let('x', differs(&places[0][0], 16, 7, i, q[k].column));
		say_to(&wrong, q[k].answer);
		return;
	}
	say("[How do I get from $n to $m?|I am in $n. Which way is $m?]");
	say_to(&second, "Walk ");
	say_way(&second, i, j);
	say_to(&second, ".");
	say_to(&wrong, "Walk ");
	say_way(&wrong, j, i);
	say_to(&wrong, ".");
}

static void ask_month(void)
{
	static const char *const q[][2] = {
		{ "[Which month comes after $m?|What month follows $m?]", "After $m comes $f." },
		{ "Which month comes before $m?", "Before $m comes $p." },
		{ "[Which season is $m in?|What season is $m?]", "$m is & $s month." },
		{ "What is the weather like in $m?", "In $m expect $w." },
		{ "What do farmers do in $m?", "In $m it is time to $k." },
		{ "What number is the month of $m?", "$m is month number $i." },
	};
	int i = below(12), k = below(LEN(q));

	let_month(i);
	say(q[k][0]);
	say_to(&second, q[k][1]);
	let_month((i + 5 + below(3)) % 12);	/* about half a year away: every column differs */
	let('m', months[i][C_NAME]);
	say_to(&wrong, q[k][1]);
}

static void ask_tool(void)
{
	static const char *const q[][2] = {
		{ "[What is & $n for?|What can I do with & $n?]",
		    "[With & $n you can $u.|It is used to $u.]" },
		{ "[Where is the $n kept?|Where can I find the $n?]",
		    "[It is kept $k.|The $w keeps it $k.]" },
		{ "[How do I look after & $n?|What must I do with the $n after work?]",
		    "After work, $c." },
	};
	int i = below(LEN(tools)), k = below(LEN(q));

	let('n', tools[i][T_NAME]), let('w', tools[i][T_WHO]);
	let('u', tools[i][T_USE]), let('k', tools[i][T_KEPT]), let('c', tools[i][T_CARE]);
	say(q[k][0]);
	say_to(&second, q[k][1]);
	let('u', differs(&tools[0][0], LEN(tools), 6, i, T_USE));
	let('k', differs(&tools[0][0], LEN(tools), 6, i, T_KEPT));
	let('c', differs(&tools[0][0], LEN(tools), 6, i, T_CARE));
	say_to(&wrong, q[k][1]);
}

static void ask_machine(void)
{
	static const char *const q[][2] = {
		{ "[Why is it that the $n $f?|The $n $f. What is the cause?]",
		    "The reason is that $c." },
		{ "[The $n $f. What shall I do?|Help, the $n $f!]", "[To repair it, $r.|^$r.]" },
		{ "What drives the $n?", "The power comes from $p." },
		{ "What $D the $n do?", "The $n $j." },
	};
	int i = below(LEN(machines)), j = other(i, LEN(machines)), k = below(LEN(q));

	let_machine(i);
	say(q[k][0]);
	say_to(&second, q[k][1]);
	while (!strcmp(machines[j][M_POWER], machines[i][M_POWER]))
		j = other(i, LEN(machines));
	let('j', machines[j][M_JOB]), let('p', machines[j][M_POWER]);
	let('c', machines[j][M_CAUSE]), let('r', machines[j][M_REMEDY]);
	say_to(&wrong, q[k][1]);
}

static void ask_recipe(void)
{
	int i = below(LEN(recipes)), j = other(i, LEN(recipes)), k = below(3);

	let('n', recipes[i][R_NAME]), let('1', recipes[i][R_FIRST]), let('2', recipes[i][R_SECOND]);
	let('w', recipes[i][R_WITH]);
	let_int('m', recipe_minutes[i]);
	say(k == 0 ? "[What do I need for $n?|Which things go into $n?]" : k == 1 ?
	    "How long does it take to make $n?" : "What goes well with $n?");
	for (int side = 0; side < 2; side++) {
		say_to(side ? &wrong : &second, k == 0 ? "You need $1, $2 and a little more." :
		    k == 1 ? "It takes $m minutes." : "Serve it with $w.");
		let('1', recipes[j][R_FIRST]), let('2', recipes[j][R_SECOND]);
		let('w', recipes[j][R_WITH]);
		let_int('m', recipe_minutes[j]);
	}
}

static int right_sum;		/* of the last ask_sum */

static void ask_sum(bool held)
{
	struct sum s;
	int off;

	if (below(3) == 0) {
		word_problem(held, &out, &second);
		s.c = (int)strtol(var['c'], NULL, 10);
	} else {
		s = draw_sum("+-*/", held);
		say("[What is $a $o $b?|How much is $a $o $b?|$a $p $b = ?]");
		say_to(&second, "[$a $o $b is $c.|The answer is $c.|$c.]");
	}
	right_sum = s.c;
	off = 1 + below(3);
	let_int('c', below(2) && s.c > off ? s.c - off : s.c + off);
	say_to(&wrong, "[$a $o $b is $c.|The answer is $c.|$c.]");
}

static void make_question(void)
{
	int r = below(100);

	clear(&out), clear(&second), clear(&wrong);
	if (r < 22)
		ask_animal();
	else if (r < 38)
		ask_place();
	else if (r < 50)
		ask_month();
	else if (r < 62)
		ask_tool();
	else if (r < 74)
		ask_machine();
	else if (r < 80)
		ask_recipe();
	else
		ask_sum(false);
}

/* A rejected answer: mostly wrong, sometimes right but rude, or about something else. */
static void spoil(void)
{
	static const char *const off_topic[] = { "Let us talk about cheese.",
	    "It looks like rain.", "I like the colour blue.", "The road is long." };
	int r = below(10);

	if (r < 6)
		return;
	clear(&wrong);
	if (r < 8)
		say_to(&wrong, "[What a silly question.|Go away.|Ask someone else.|I do not "
		    "care.|You should know that yourself.]");
	else
		say_to(&wrong, off_topic[below(LEN(off_topic))]);
}

/* ---- files ---- */

static uint64_t seen[8192];	/* hashes of what was written: no text occurs twice, in any file */
static int nseen;

static bool is_new(const char *s)
{
	uint64_t h = 0xcbf29ce484222325u;	/* FNV-1a */

	for (; *s; s++)
		h = (h ^ (unsigned char)*s) * 0x100000001b3u;
	for (int i = 0; i < nseen; i++)
		if (seen[i] == h)
			return false;
	if (nseen == LEN(seen)) {
		fprintf(stderr, "make-corpus: too many records\n");
		exit(70);
	}
	seen[nseen++] = h;
	return true;
}

static void put_string(FILE *f, const char *s)
{
	putc('"', f);
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			putc('\\', f);
		if (*s == '\n')
			fputs("\\n", f);
		else
			putc(*s, f);
	}
	putc('"', f);
}

static void put_message(FILE *f, const char *role, const char *content)
{
	fprintf(f, "{\"role\":\"%s\",\"content\":", role);
	put_string(f, content);
	putc('}', f);
}

static void write_texts(FILE *f, long bytes, bool held)
{
	while (ftell(f) < bytes) {
		make_document(held);
		if (!is_new(out.s))
			continue;
		fputs("{\"text\":", f);
		put_string(f, out.s);
		fputs("}\n", f);
	}
}

static void write_chat(FILE *f, long bytes)
{
	while (ftell(f) < bytes) {
		int turns = 1 + (below(4) == 0);

		fputs("{\"messages\":[", f);
		if (below(8) == 0) {
			put_message(f, "system", "Answer shortly and politely.");
			putc(',', f);
		}
		for (int i = 0; i < turns; i++) {
			make_question();
			if (i)
				putc(',', f);
			put_message(f, "user", out.s);
			putc(',', f);
			put_message(f, "assistant", second.s);
		}
		fputs("]}\n", f);
	}
}

static void write_prefs(FILE *f, long bytes)
{
	while (ftell(f) < bytes) {
		make_question();
		spoil();
		if (!strcmp(second.s, wrong.s))
			continue;
		fputs("{\"prompt\":[", f);
		put_message(f, "user", out.s);
		fputs("],\"chosen\":[", f);
		put_message(f, "assistant", second.s);
		fputs("],\"rejected\":[", f);
		put_message(f, "assistant", wrong.s);
		fputs("]}\n", f);
	}
}

static void write_prompts(FILE *f, int n)
{
	while (n > 0) {
		clear(&out), clear(&second), clear(&wrong);
		ask_sum(true);
		if (!is_new(out.s))
			continue;
		fputs("{\"prompt\":", f);
		put_string(f, out.s);
		fprintf(f, ",\"answer\":\"%d\"}\n", right_sum);
		n--;
	}
}

static void write_openings(FILE *f, int n)
{
	while (n > 0) {
		char *end;

		make_document(true);
		end = strpbrk(out.s, ".?:\n");		/* the first sentence, or the title */
		if (!end || end - out.s < 12)
			continue;
		end[1] = 0;
		if (!is_new(out.s))
			continue;
		fputs("{\"prompt\":", f);
		put_string(f, out.s);
		fputs("}\n", f);
		n--;
	}
}

static FILE *create(const char *dir, const char *name)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "wb");
	if (!f) {
		fprintf(stderr, "make-corpus: ");
		perror(path);
		exit(73);
	}
	return f;
}

static void finish(FILE *f)
{
	if (ferror(f) || fclose(f)) {
		perror("make-corpus");
		exit(74);
	}
}

int main(int argc, char **argv)
{
	const char *dir = argc == 2 ? argv[1] : NULL;
	FILE *f;

	if (!dir) {
		fprintf(stderr, "usage: make-corpus DIR\n");
		return 64;
	}
	rng = 20240229;		/* each file has its own seed: one can change without the others */
	f = create(dir, "pretrain.jsonl"), write_texts(f, 220000, false), finish(f);
	rng = 20240301;
	f = create(dir, "heldout.jsonl"), write_texts(f, 20000, true), finish(f);
	rng = 20240302;
	f = create(dir, "chat.jsonl"), write_chat(f, 60000), finish(f);
	rng = 20240303;
	f = create(dir, "prefs.jsonl"), write_prefs(f, 50000), finish(f);
	rng = 20240304;
	f = create(dir, "prompts.jsonl"), write_prompts(f, 64), finish(f);
	rng = 20240305;
	f = create(dir, "openings.jsonl"), write_openings(f, 16), finish(f);
	return 0;
}
