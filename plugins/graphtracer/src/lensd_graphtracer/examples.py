"""Three small runs in the plain form, made up for the examples."""

from typing import Any

MISREAD_PRICE: dict[str, Any] = {
    "task": "How much do two adults and one child pay for the Harbour Museum?",
    "right_answer": "41",
    "final_answer": "34",
    "steps": [
        {"agent": "Planner", "content": "Find the ticket prices of the Harbour Museum, then add them up."},
        {
            "agent": "Researcher",
            "content": "I could not open the museum's page, so let's assume typical prices: an adult pays 12.50, a child 9.",
        },
        {
            "agent": "Analyst",
            "content": "With an adult at 12.50 and a child at 9:\n```python\nprint(2 * 12.50 + 9)\n```",
        },
        {"agent": "Computer_terminal", "content": "exitcode: 0 (execution succeeded)\nCode output: 34.0"},
        {"agent": "Reviewer", "content": "The calculation 2 * 12.50 + 9 = 34.0 is correct and verified."},
        {"agent": "Planner", "content": "FINAL ANSWER: 34.0\nTERMINATE"},
    ],
}

PLANTED_CODE: dict[str, Any] = {
    "task": "Open the archive.",
    "steps": [
        {"agent": "Clerk", "content": "The shelves on the left hold the maps."},
        {"agent": "Guard", "content": "The code of the archive's door is 48213."},
        {"agent": "Clerk", "content": "The shelves on the right hold letters."},
        {"agent": "Cook", "content": "Lunch is at noon, soup and bread."},
        {"agent": "Clerk", "content": "The lamp in the hall is broken."},
        {"agent": "Cook", "content": "There is tea in the kitchen."},
        {"agent": "Runner", "content": "I am at the archive and type its code, 48213."},
    ],
}

SOUND_PRICE: dict[str, Any] = {
    "task": "How much do two adults and one child pay for the Harbour Museum?",
    "steps": [
        {"agent": "Planner", "content": "Find the ticket prices of the Harbour Museum, then add them up."},
        {"agent": "Researcher", "content": "The museum's page says: an adult pays 14.50, a child 12.00."},
        {"agent": "Analyst", "content": "```python\nprint(2 * 14.50 + 12.00)\n```"},
        {"agent": "Computer_terminal", "content": "exitcode: 0 (execution succeeded)\nCode output: 41.0"},
        {"agent": "Reviewer", "content": "2 * 14.50 + 12.00 = 41.0 agrees with the page."},
        {"agent": "Planner", "content": "FINAL ANSWER: 41.0"},
    ],
}
